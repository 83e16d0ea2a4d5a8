"""The page in a browser: what people click, type and see, without one line in the browser's error log."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.browser import Browser, find_chromium

pytestmark = [
    pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium on this machine"),
    pytest.mark.timeout(240),
]
FIGURES = "document.querySelectorAll('#gallery figure').length"


@pytest.fixture
def page(listen, tmp_path: Path) -> Iterator[Browser]:
    url = listen(seconds=0.1, limit=200)
    browser = Browser(tmp_path / "profile")
    browser.app = listen.app  # pyright: ignore[reportAttributeAccessIssue]
    try:
        browser.call("Page.navigate", url=url)
        browser.wait("!!document.getElementById('state') && document.getElementById('state').textContent")
        yield browser
    finally:
        browser.close()


def shoot(page: Browser, name: str) -> None:
    if os.environ.get("SHOTS"):
        page.shoot(Path(os.environ["SHOTS"]) / f"{name}.png")


def test_draw_cancel_repeat_vary_search_theme_and_phone(page: Browser) -> None:
    page.type("<img src=x onerror=alert(1)>")  # the prompt has the focus
    page.click("#draw")
    page.wait(f"{FIGURES} === 1")
    assert page.ask("document.querySelector('figcaption p').textContent") == "<img src=x onerror=alert(1)>"
    assert page.wait("document.querySelector('#gallery img').naturalWidth") == 8
    shoot(page, "first")

    page.ask("document.getElementById('prompt').value = ''")
    page.click("#prompt")
    page.type("a long walk")
    page.click("summary")
    page.click("[name=steps]")
    page.type("200")
    page.click("#draw")
    page.wait(
        "document.querySelector('#queue progress') && document.querySelector('#queue progress').value > 1"
    )
    page.wait(
        "!!document.querySelector('#queue img') && document.querySelector('#queue img').naturalWidth === 8"
    )
    shoot(page, "drawing")
    page.click("#queue [aria-label^='Cancel']")
    page.wait("document.querySelector('#queue').textContent.includes('Nothing')")

    page.click("figure [aria-label^='Draw again']")
    page.wait(f"{FIGURES} === 2")
    page.click("figure [aria-label^='Draw with another seed']")
    page.wait(f"{FIGURES} === 3")
    seeds = page.ask("[...document.querySelectorAll('figcaption p')].map((p) => p.title)")
    assert seeds[1] == seeds[2] != seeds[0], seeds
    page.ask("document.querySelector('[name=steps]').value = ''")
    page.click("[name=seed]")
    page.type("9007199254740993")  # 2^53 + 1: no number of JavaScript
    page.click("#draw")
    page.wait(f"{FIGURES} === 4")
    page.click("figure [aria-label^='Draw again']")
    page.wait(f"{FIGURES} === 5")
    seeds = page.ask("[...document.querySelectorAll('figcaption p')].map((p) => p.title)")
    assert seeds[:2] == ["seed 9007199254740993"] * 2, seeds

    page.click("figure .view")
    page.wait(
        "document.querySelector('#large').open && document.querySelector('#large img').naturalWidth === 8"
    )
    shoot(page, "large")
    page.click("#large button")
    page.wait("!document.querySelector('#large').open")

    page.click("#search")
    page.type("no such words")
    page.wait(f"{FIGURES} === 0")
    page.ask("document.getElementById('search').value = ''")
    page.type("IMG SRC")
    page.wait(f"{FIGURES} === 3")

    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.ask(ground)
    page.click("#theme")
    assert page.ask(ground) != before
    shoot(page, "other-theme")
    page.call("Page.reload")
    page.wait(f"{FIGURES} === 5")
    assert page.ask(ground) != before  # remembered

    page.click("figure [aria-label^='Delete']")
    page.wait("document.querySelector('figure [aria-label^=Delete]').textContent === 'Really?'")
    page.click("figure [aria-label^='Delete']")
    page.wait(f"{FIGURES} === 4")

    page.resize(390, 844, mobile=True)
    page.wait("innerWidth === 390")
    assert page.ask("document.documentElement.scrollWidth") <= 390
    shoot(page, "phone")
    assert page.problems == []


def test_keyboard_alone_is_enough(page: Browser) -> None:
    page.type("a cat")
    page.press("Enter", modifiers=2)
    page.wait(f"{FIGURES} === 1")
    page.press("Tab")
    assert page.ask("document.activeElement.id") == "draw"
    page.press("Enter")
    page.wait(f"{FIGURES} === 2")
    for _ in range(20):
        page.press("Tab")
        if (page.ask("document.activeElement.getAttribute('aria-label')") or "").startswith("Draw again"):
            break
    outline = page.ask("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus can be seen"
    page.press("Enter")
    page.wait(f"{FIGURES} === 3")
    assert page.ask("document.activeElement !== document.body"), "the focus is kept when the gallery changes"
    assert page.problems == []


def test_what_a_prompt_was_read_as_is_shown_and_can_be_turned_off(page: Browser) -> None:
    caption = "document.querySelector('figcaption p').textContent"
    page.type("a puppy")
    page.click("#draw")
    page.wait(f"{FIGURES} === 1")
    assert page.ask(caption) == "a puppy\nread as: a dog"
    page.click("summary")
    page.click("[name=as_written]")
    page.click("#draw")
    page.wait(f"{FIGURES} === 2")
    assert page.ask(caption) == "a puppy"
    page.click("figure [aria-label^='Draw again']")
    page.wait(f"{FIGURES} === 3")
    assert page.ask(caption) == "a puppy", "repeated as it was drawn"


def test_a_long_queue_can_still_be_cancelled_and_a_long_history_be_read(page: Browser) -> None:
    for number in range(9):  # more than the connections that a browser opens to one server
        body = f"{{method: 'POST', body: JSON.stringify({{prompt: 'job {number}', steps: 200}})}}"
        assert page.ask(f"fetch('/jobs', {body}).then((answer) => answer.status)") == 202
    page.wait("document.querySelectorAll('#queue li').length === 9")
    for left in range(8, -1, -1):
        page.click("#queue li:last-child [aria-label^='Cancel']")
        page.wait(
            "document.querySelectorAll('#queue li').length === "
            f"{left or 1} && {left} + document.querySelectorAll('#queue .empty').length > 0",
            seconds=20,
        )
    store = page.app.state.context.store  # pyright: ignore[reportAttributeAccessIssue]
    for number in range(130):
        job = store.add("local", "image", {"generate": {"prompt": [f"old {number}"], "model": "default"}})
        store.finish(job.id, "failed", error="too old")
    page.call("Page.reload")
    page.wait("document.querySelectorAll('#gallery .failed').length === 100")
    page.click("#older")
    page.wait("document.querySelectorAll('#gallery .failed').length === 130")
    assert page.ask("document.querySelector('#older').hidden")
    page.click("#search")
    page.type("OLD 7")  # among the newest hundred are not all of them
    page.wait("document.querySelectorAll('#gallery .failed').length === 11")
    assert page.problems == []


def test_another_site_s_page_cannot_order_pictures(page: Browser) -> None:
    url = page.ask("location.origin")
    page.call("Page.navigate", url="data:text/html,<p>elsewhere</p>")
    page.wait("document.body && document.body.textContent === 'elsewhere'")
    said = page.ask(
        f"fetch('{url}/jobs', {{method: 'POST', body: JSON.stringify({{prompt: 'a'}}), mode: 'no-cors'}})"
        ".then(() => 'sent', (error) => error.name)"
    )
    assert said in ("sent", "TypeError")
    page.call("Page.navigate", url=url)
    page.wait(
        "document.querySelector('#queue') && document.querySelector('#queue').textContent.includes('Nothing')"
    )
    assert page.ask(FIGURES) == 0
