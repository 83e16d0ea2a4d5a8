"""The page in a browser: figures, a click that leads to a frame, zoom by keyboard, nothing in red."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fewer.stitch.output.marks import DepthScale
from fewer.stitch.output.page import render_page
from fewer.stitch.panorama import Panorama

pytest.importorskip("websockets")
from tests.serve.browser import Browser, find_chromium

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no browser on this machine")


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture
def browser(window: Browser, tmp_path: Path, small_map: Panorama) -> Browser:
    page = tmp_path / "report.html"
    page.write_text(render_page(small_map, [DepthScale(38.0, -0.02)]), encoding="utf-8")
    window.problems.clear()
    window.call("Page.navigate", url=page.as_uri())
    window.wait("document.querySelectorAll('#figures tr').length > 5 && pieces[0].picture.complete")
    return window


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


EVIL = ["<!--<script>alert(1)", '"><img src=x onerror=alert(1)>', "a" * 300]


def test_hostile_words_a_turned_telephone_and_the_keyboard_alone(
    browser: Browser, small_map: Panorama, tmp_path: Path
) -> None:
    page = tmp_path / "evil.html"
    spoiled = replace(small_map, report={**small_map.report, "warnings": EVIL})
    page.write_text(render_page(spoiled, [None]), encoding="utf-8")
    browser.call("Page.navigate", url=page.as_uri())
    browser.wait("typeof pieces === 'object' && pieces[0].picture.complete")
    texts = browser.ask("[...document.querySelectorAll('#figures td')].map(cell => cell.textContent)")
    assert texts[-3:] == EVIL
    assert browser.ask("document.querySelectorAll('#figures th[scope=row]').length") == len(texts)
    visible = "left < pieces[0].width / 2 && (pieces[0].height / 2 - top_) * zoom < canvas.clientHeight"
    for width, height in ((360, 740), (740, 360), (320, 256)):
        browser.resize(width, height)
        browser.wait(f"Math.abs(canvas.width - canvas.clientWidth) <= 1 && innerWidth === {width}")
        assert browser.ask("document.documentElement.scrollWidth <= innerWidth")
        assert browser.ask(f"top_ < pieces[0].height / 2 && left > -pieces[0].width && {visible}")
    for _ in range(7):
        browser.press("Tab")
    assert browser.ask("document.activeElement.id") == "inside"
    browser.press("Tab")
    assert browser.ask("document.activeElement === canvas && canvas.matches(':focus-visible')")
    browser.press("Enter")
    assert browser.ask("document.getElementById('where').textContent").startswith("Frame ")
    assert browser.ask("performance.getEntriesByType('resource').every(one => one.name.startsWith('data:'))")
    assert browser.problems == []
