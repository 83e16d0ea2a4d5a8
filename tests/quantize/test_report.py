from pathlib import Path

from PIL import Image

from fewer.quantize.measure import LayerReport
from fewer.quantize.report import write_report


def test_the_report_names_every_layer_worst_first_and_escapes_text(tmp_path: Path) -> None:
    reports = [
        LayerReport("good", (64, 64), "int4", 0.01, 0.1, bytes_before=100, bytes_after=30),
        LayerReport("bad<script>", (64, 64), "w4a16", None, 0.5, bytes_before=100, bytes_after=28),
    ]
    picture = Image.new("RGB", (8, 8), "red")
    pairs = [("a <b> prompt", picture)]
    write_report(tmp_path / "r.html", {"format": "int4", "seconds": 2.5}, reports, pairs, pairs)
    page = (tmp_path / "r.html").read_text()
    assert page.index("bad&lt;script&gt;") < page.index(">good<") and "<script>" not in page
    assert page.count("data:image/png;base64,") == 2 and "a &lt;b&gt; prompt" in page and "0.28" in page
