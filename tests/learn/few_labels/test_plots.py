from xml.etree import ElementTree

from fewer.learn.few_labels.plots import confusion_table, line_plot, reliability_plot


def test_lines_lie_inside_the_frame_and_break_at_gaps() -> None:
    picture = ElementTree.fromstring(line_plot([0.0, 1.0, 2.0, 3.0], {"a<b": [1.0, None, 3.0, 2.0]}, "x & y"))
    lines = picture.findall("polyline")
    assert len(lines) == 2
    points = [tuple(map(float, p.split(","))) for line in lines for p in line.attrib["points"].split()]
    assert all(48 <= x <= 408 and 12 <= y <= 210 for x, y in points)
    assert points[1][1] < points[2][1]  # a larger value is higher up
    assert "a<b" in "".join(picture.itertext())


def test_constant_and_empty_lines() -> None:
    ElementTree.fromstring(line_plot([5.0], {"one": [2.0]}, "constant"))
    assert "nothing to show" in line_plot([], {}, "empty")
    assert "nothing to show" in line_plot([1.0], {"none": [None]}, "empty")


def test_reliability_has_a_dot_for_each_used_bin() -> None:
    picture = ElementTree.fromstring(reliability_plot([0.2, 0.5, 0.9], [0.1, 0.0, 1.0], [0.5, 0.0, 0.5]))
    assert len(picture.findall("circle")) == 2


def test_confusion_escapes_names() -> None:
    table = confusion_table([[3, 1], [0, 4]], ["<script>", "b"])
    assert "<script>" not in table
    assert ElementTree.fromstring(table).findall(".//td")[1].text == "1"
