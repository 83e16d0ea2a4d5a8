from html.parser import HTMLParser

from fewer.learn.domains.report import report_page
from fewer.learn.domains.tables import accuracy_table, paired_difference


class Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def test_the_page_holds_verdict_table_interval_and_layers() -> None:
    table = accuracy_table({"erm": {"a<b": {0: 0.5, 1: 0.52}}, "erm + evil": {"a<b": {0: 0.6, 1: 0.61}}})
    layer = {
        "name": "blocks.3.weight",
        "weights": 10,
        "kept": 6,
        "changed": 0.1,
        "spread_kept": 0.8,
        "spread_dropped": None,
    }
    page = report_page(
        "set",
        table,
        {"erm + evil": paired_difference([10.0, 9.0])},
        "erm",
        {"erm + evil": [layer], "erm": []},
        {"steps": 4},
        ["a note"],
    )
    words = Words()
    words.feed(page)
    assert "<script" not in page
    assert "a<b" in words.text and "a<b" not in page
    for text in ("erm + evil is better than erm", "60.5 ± 0.5", "60.0%", "0.80", "Note: a note"):
        assert text in words.text
    assert "svg" in words.tags
