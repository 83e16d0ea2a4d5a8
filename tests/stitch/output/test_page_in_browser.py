"""The page in a browser: figures, a click that leads to a frame, zoom by keyboard, nothing in red."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fewer.stitch.output.marks import DepthScale
from fewer.stitch.output.page import render_page
from fewer.stitch.panorama import Panorama

pytest.importorskip("websockets")
from tests.serve.browser import Browser, find_chromium

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no browser on this machine")


@pytest.fixture
def browser(tmp_path: Path, small_map: Panorama) -> Iterator[Browser]:
    page = tmp_path / "report.html"
    page.write_text(render_page(small_map, [DepthScale(38.0, -0.02)]), encoding="utf-8")
    browser = Browser(tmp_path / "profile")
    try:
        browser.call("Page.navigate", url=page.as_uri())
        browser.wait("document.querySelectorAll('#figures tr').length > 5 && pieces[0].picture.complete")
        yield browser
    finally:
        browser.close()


def test_a_click_leads_to_the_frame_and_keys_zoom(browser: Browser, small_map: Panorama) -> None:
    assert "Not a medical device" in browser.ask("document.getElementById('notice').textContent")
    height, width = small_map.image.shape[:2]
    x, y = width // 2, height // 2
    found = small_map.provenance.locate(x // 4 * 4, y // 4 * 4)
    assert found is not None
    place = (
        "(() => {{ const b = canvas.getBoundingClientRect();"
        " return [b.x + ({0} + 0.5 - left) * zoom, b.y + ({1} + 0.5 - top_) * zoom]; }})()"
    )
    across, down = browser.ask(place.format(x, y))
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=across, y=down, button="left", clickCount=1)
    text = browser.wait("window.where.textContent.startsWith('Frame') && window.where.textContent")
    frame, px, py = found
    assert text.startswith(f"Frame {frame}, time 00:0{frame / 25:.2f}, at x {px:.0f}, y {py:.0f} ")
    assert "cm" in text
    assert browser.wait("thumb.naturalWidth") == 240
    assert browser.ask("!dot.hidden && parseFloat(dot.style.left) > 0 && parseFloat(dot.style.left) < 100")
    before = browser.ask("zoom")
    browser.ask("canvas.focus()")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="+", text="+")
    assert browser.ask("zoom") > 1.2 * before
    browser.click("#fit")
    assert browser.ask("zoom") == pytest.approx(before)
    colours = "[...context.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data].slice(0, 3)"
    assert max(browser.ask(colours)) > 40
    assert browser.problems == []


def test_certainty_is_painted_and_a_frames_number_shows_what_it_saw(browser: Browser) -> None:
    pictures = [browser.ask("(fit(), canvas.toDataURL())")]
    browser.click("#sure")
    pictures.append(browser.ask("canvas.toDataURL()"))
    browser.ask("numberField.value = 4; numberField.onchange()")
    text = browser.ask("document.getElementById('where').textContent")
    assert text.startswith("Frame 4, time 00:00.16")
    assert "map pixels" in text
    assert browser.ask("shown") == 4
    pictures.append(browser.ask("canvas.toDataURL()"))
    assert len(set(pictures)) == 3
    browser.ask("numberField.value = 99; numberField.onchange()")
    assert "not on the map" in browser.ask("document.getElementById('where').textContent")
    assert browser.problems == []


def test_looking_inside_rolls_the_map_up_and_a_click_there_leads_to_a_frame(browser: Browser) -> None:
    pictures = [browser.ask("(fit(), canvas.toDataURL())")]
    browser.click("#inside")
    pictures.append(browser.ask("canvas.toDataURL()"))
    browser.ask("canvas.focus()")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowUp")
    pictures.append(browser.ask("canvas.toDataURL()"))
    assert len(set(pictures)) == 3
    wall = browser.ask("wallAt(0, 0.9, pieces[0])")
    assert wall[0] == pytest.approx(browser.ask("pieces[0].width") / 4)
    browser.ask("pickOnScreen(insideBox()[0] + insideBox()[2] / 2, insideBox()[1] + 0.9 * insideBox()[2])")
    assert browser.ask("document.getElementById('where').textContent").startswith("Frame ")
    assert browser.problems == []
