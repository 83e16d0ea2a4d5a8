"""A headless Chromium, driven over its own DevTools socket: real key presses and mouse clicks."""

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

KEYS = {"Tab": 9, "Enter": 13}


def find_chromium() -> str | None:
    """The browser's path, if there is one on this machine."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page. `problems` collects everything a developer would see in red."""

    def __init__(self, folder: Path, width: int = 1200, height: int = 900) -> None:
        from websockets.sync.client import connect

        command = [
            str(find_chromium()), "--headless=new", "--no-sandbox", "--disable-gpu",
            f"--user-data-dir={folder}", f"--window-size={width},{height}", "--disable-dev-shm-usage",
            "--remote-debugging-port=0", "--no-first-run", "about:blank",
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file, deadline = folder / "DevToolsActivePort", time.monotonic() + 60
        while not (port_file.exists() and port_file.read_text().strip()):
            assert time.monotonic() < deadline, "the browser did not start"
            time.sleep(0.1)
        port = port_file.read_text().split()[0]
        pages = httpx.get(f"http://127.0.0.1:{port}/json", timeout=30).json()
        page = next(entry for entry in pages if entry["type"] == "page")
        self._socket = connect(page["webSocketDebuggerUrl"], max_size=2**26, proxy=None)
        self._number, self.problems = 0, []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict:
        """One DevTools command; events that come meanwhile are looked through for problems."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._note(message["method"], message["params"])

    def _note(self, event: str, facts: dict) -> None:
        if event == "Page.javascriptDialogOpening":
            self.problems.append(("a dialog", facts["message"]))
        elif event == "Runtime.exceptionThrown":
            self.problems.append(("an exception", facts["exceptionDetails"]))
        elif event == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.problems.append(("the log", facts["entry"]["text"], facts["entry"].get("url")))
        elif event == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.problems.append(("the console", facts["args"]))

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 30) -> Any:
        """The expression's value once it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.ask(script)):
            assert time.monotonic() < deadline, (
                f"never true: {script}; the page: {self.ask('document.body.innerText')}"
            )
            time.sleep(0.05)
        return value

    def click(self, selector: str) -> None:
        """A mouse click in the middle of the first match."""
        quoted = json.dumps(selector)
        self.wait(f"!!document.querySelector({quoted})")
        where = (
            f"(() => {{ const e = document.querySelector({quoted}); e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        x, y = self.ask(where)
        while (again := self.ask(where)) != [x, y]:  # the page still moves
            x, y = again
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Into whatever has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        """A key; modifier 2 is Ctrl, 8 is Shift."""
        facts = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": modifiers}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **facts, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        """The size of the page in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )

    def shoot(self, path: Path) -> None:
        """A screenshot as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """Ends the browser."""
        self._socket.close()
        self.process.kill()
        self.process.wait(10)
