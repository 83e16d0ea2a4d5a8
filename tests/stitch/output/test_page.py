import base64
import hashlib
import json
import re

import cv2
import numpy as np

from fewer.stitch.output.page import render_page
from fewer.stitch.panorama import Panorama


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def test_the_page_stands_alone(small_map: Panorama) -> None:
    page = render_page(small_map, [None] * len(small_map.segments))
    assert not re.search(r"(src|href)=[\"']?(https?:|//|[a-z./]+\.(js|css|png))", page)
    assert "http://" not in page
    assert "https://" not in page
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "innerHTML" not in script


def test_picture_provenance_and_times_are_inside(small_map: Panorama) -> None:
    piece = small_map.segments[0]
    entry = data_of(render_page(small_map, [None]))["segments"][0]
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(entry["picture"]), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == piece.image.shape
    frame = np.frombuffer(base64.b64decode(entry["frame"]), "<i4").reshape(-1, entry["columns"])
    assert (frame == piece.provenance.frame[:: entry["cell"], :: entry["cell"]]).all()
    place = np.frombuffer(base64.b64decode(entry["place"]), "<i2").reshape(*frame.shape, 2)
    seen = frame >= 0
    assert np.abs(place[seen][:, 0] - piece.provenance.x[::4, ::4][seen]).max() <= 0.5
    assert set(entry["seconds"]) == {str(number) for number in piece.frames}


def test_text_cannot_break_out_of_the_page(small_map: Panorama) -> None:
    from dataclasses import replace

    evil = "<!--<script></script><script>alert(1)</script>"
    spoiled = replace(small_map, report={**small_map.report, "warnings": [evil]})
    page = render_page(spoiled, [None])
    assert page.count("</script>") == 2 and page.count("<script") == 2 and "<!--" not in page
    assert data_of(page)["report"]["warnings"] == [evil]
