"""A real, headless Chromium, driven through chromedriver's own protocol, W3C WebDriver.

Debian: apt-get install chromium chromium-driver.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

# Quiet, and with no word to anybody's server.
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1000,900",
)  # fmt: skip
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {
    "Backspace": "\ue003", "Tab": "\ue004", "Enter": "\ue007", "Shift": "\ue008",
    "Escape": "\ue00c", "Left": "\ue012", "Up": "\ue013", "Right": "\ue014", "Down": "\ue015",
}  # fmt: skip


def missing() -> str:
    """Return what has to be installed before a browser can be started, or ''."""
    lacks = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"not installed: {', '.join(lacks)}" if lacks else ""


class Browser:
    """One window. `wait` is what makes tests steady: nothing here sleeps for a fixed time."""

    def __init__(self, folder: Path) -> None:
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._driver.stdout
        port = ""
        for line in self._driver.stdout:
            if "started successfully on port" in line:
                port = line.rsplit(" ", 1)[1].strip(".\n")
                break
        self._base = f"http://127.0.0.1:{port}/session"
        options = {
            "args": [*_FLAGS, f"--user-data-dir={folder}"],
            "binary": shutil.which("chromium"),
        }
        wanted = {
            "alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        }
        self._base += "/" + self._call("POST", "", {"capabilities": wanted})["sessionId"]

    def close(self) -> None:
        with suppress(OSError):
            self._call("DELETE", "")
        self._driver.terminate()
        self._driver.wait()
        assert self._driver.stdout
        self._driver.stdout.close()

    def open(self, address: str) -> None:
        self._call("POST", "/url", {"url": address})

    def run(self, script: str, *args: Any) -> Any:
        """Return what a piece of JavaScript returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(args)})

    def wait(self, script: str, *args: Any, seconds: float = 15) -> Any:
        """Return what a script returns as soon as that is true."""
        end = time.monotonic() + seconds
        while not (found := self.run(script, *args)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)
        return found

    def texts(self, css: str) -> list[str]:
        found: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", css
        )
        return found

    def text(self, css: str) -> str:
        return self.texts(css)[0]

    def click(self, css: str) -> None:
        """Click with the mouse, as a person would: on what is visible there."""
        self._call("POST", f"/element/{self._find(css)}/click", {})

    def press(self, *keys: str) -> None:
        """Press keys, one after another, where the focus is; 'Tab' and the like by their names."""
        codes = [KEYS.get(key, key) for key in keys]
        strokes = [{"type": kind, "value": code} for code in codes for kind in ("keyDown", "keyUp")]
        self._act([{"type": "key", "id": "keys", "actions": strokes}])

    def drag(self, css: str, target: str, past: float = 0.75, touch: bool = False) -> None:
        """Drag the middle of one element to a share of the height of another."""
        box = "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", css)
        middle = f"{box} return [b.x + b.width / 2, b.y + b.height / 2]"
        x, y = self.run(middle, css)
        there = self.run(f"{box} return b.y + b.height * arguments[1]", target, past)
        steps = [{"type": "pointerMove", "duration": 0, "x": int(x), "y": int(y)},
                 {"type": "pointerDown", "button": 0}]  # fmt: skip
        for part in (0.3, 0.7, 1.0):
            to = int(y + (there - y) * part)
            steps.append({"type": "pointerMove", "duration": 20, "x": int(x), "y": to})
        steps.append({"type": "pointerUp", "button": 0})
        kind = "touch" if touch else "mouse"
        pointer = {"parameters": {"pointerType": kind}, "id": kind, "actions": steps}
        self._act([{"type": "pointer", **pointer}])

    def devtools(self, command: str, **values: Any) -> Any:
        """Ask Chromium itself, for what the protocol has no word for: a phone, the dark."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": values})

    def log(self) -> list[str]:
        """Return what the page said on its console since the last call."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def _find(self, css: str) -> str:
        found = self._call("POST", "/element", {"using": "css selector", "value": css})
        return str(found[_ELEMENT])

    def _act(self, actions: list[dict[str, Any]]) -> None:
        self._call("POST", "/actions", {"actions": actions})
        self._call("DELETE", "/actions")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._base + path, data, headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None
