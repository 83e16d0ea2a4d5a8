from pathlib import Path
from xml.etree import ElementTree

from fewer.recommend.recommender import Recommender
from fewer.recommend.report import line_chart, report_page, write_report


def test_the_page_shows_every_figure_and_needs_nothing_else(trained: Recommender, tmp_path: Path) -> None:
    page = write_report(trained, tmp_path / "report.html").read_text()
    for method, row in trained.report["metrics"].items():
        assert method in page and f"{row['ndcg_at_10']:.4f}" in page
    assert "Full ranking over all 20 items" in page
    assert "<script" not in page and "http://" not in page and "https://" not in page


def test_words_from_data_are_text(trained: Recommender) -> None:
    trained.report["notes"] = ["<img src=x onerror=alert(1)>"]
    assert "<img" not in report_page(trained) and "&lt;img" in report_page(trained)


def test_a_chart_is_well_formed_and_has_one_line_per_series() -> None:
    svg = ElementTree.fromstring(line_chart([[0.1, 0.9], [0.5, 0.2]], ["a & b", "<c>"], "epoch", "p"))
    lines = [e for e in svg if e.tag.endswith("polyline")]
    assert len(lines) == 2
    first = [tuple(map(float, point.split(","))) for point in lines[0].get("points").split()]
    assert first[0][0] < first[1][0] and first[0][1] > first[1][1]  # to the right, and upwards


def test_a_model_that_learned_from_everything_says_so(trained: Recommender) -> None:
    kept = dict(trained.report)
    trained.report |= {"metrics": {}, "search": {"path": [[0.5, 0.5]], "candidates": [1, 2], "length": 2,
        "grid": [{"length": 2, "ndcg_at_10": 0.5}]}}  # fmt: skip
    page = report_page(trained)
    trained.report = kept
    assert "no test targets" in page and "Short-term length: 2" in page and "0.5000" in page
