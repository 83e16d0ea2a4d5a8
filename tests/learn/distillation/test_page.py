from dataclasses import replace
from html.parser import HTMLParser

from fewer.learn.data import LabelledImages
from fewer.learn.distillation.loop import distill
from fewer.learn.distillation.page import to_html
from tests.learn.distillation.conftest import make_pictures, tiny_plan


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags, self.sources, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_shows_every_picture_and_fetches_nothing() -> None:
    made = distill(make_pictures(), plan=tiny_plan("random"))
    reader = Reader()
    reader.feed(to_html(made))
    assert reader.tags.count("img") == 6 and "script" not in reader.tags
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)


def test_names_are_text_whatever_they_say() -> None:
    data = make_pictures()
    nasty = "<img onerror=alert(1)>"
    made = distill(LabelledImages(data.images, data.labels, (nasty, "b", "c")), plan=tiny_plan("random"))
    made = replace(made, datasheet=replace(made.datasheet, title="</title><script>x</script>"))
    page = to_html(made)
    assert nasty not in page and "<script" not in page and "&lt;img onerror" in page


def test_a_large_set_is_cut_short() -> None:
    made = distill(make_pictures(count=240), 60, plan=tiny_plan("random"), method="random")
    assert "and 10 more" in to_html(made)
