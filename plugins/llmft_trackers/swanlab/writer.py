"""The process that tells SwanLab."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmft_trackers.address import absolute_variables, host
from llmft_trackers.child import (
    Message,
    Say,
    as_typed,
    first_line,
    follow_no_redirects,
    is_reachable,
    serve,
)
from llmft_trackers.swanlab.server import saved_key

_NAMED_FILES = (
    "SWANLAB_ROOT", "SWANLAB_SAVE_DIR",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip
_COLLECTED = ("hardware", "runtime", "requirements", "conda", "git", "swanlab", "monitor")


class SwanLabRun:
    """A run as SwanLab has it: it keeps a file of everything, from which `swanlab sync` sends."""

    def __init__(self, run: Any, say: Say, left: str) -> None:
        self._run, self._say = run, say
        if left:
            say({"left": left})

    def tell(self, messages: Sequence[Message]) -> None:
        """Hand numbers on, on the stage's own axis of steps."""
        for message in messages:
            if "log" in message:
                self._run.log(dict(message["log"]), step=message["step"])
            if "config" in message:
                self._run.config.update(dict(message["config"]))
            if "notes" in message:
                self._run.config.update({"notes": message["notes"]})
            if message.get("summary"):
                stage, numbers = message["stage"], message["summary"]
                told = {f"{stage}/result/{name}": value for name, value in numbers.items()}
                self._run.log(told, step=message["step"])

    def finish(self, done: bool) -> bool:
        """Send what is left."""
        if done:
            self._run.finish()
        else:
            self._run.finish(state="crashed", error="the run did not end well")
        self._say({"left": ""})
        return True


def begin(asked: Message, here: Path, say: Say) -> SwanLabRun:
    """Start the run, or go on with it; in files where the server cannot be reached."""
    absolute_variables(_NAMED_FILES)
    key = os.environ.pop("SWANLAB_API_KEY", None) or saved_key(asked["server"])
    # No file of settings is read, but what is handed over here.
    os.environ["SWANLAB_CONFIG_DIR"] = os.environ["SWANLAB_ROOT"] = str(Path.cwd())
    os.environ.pop("SWANLAB_SAVE_DIR", None)
    follow_no_redirects()
    why = "as the recipe or SWANLAB_MODE says" if asked["offline"] else None
    if why is None and not key:
        why = "there is no key: swanlab login"
    if why is None and not is_reachable(asked["server"]):
        why = f"{host(asked['server'])} cannot be reached"
    run = None
    if why is None:
        try:
            run = _start(asked, key)
        except Exception as error:  # SwanLab's own errors, of whatever kind: files are kept instead
            why = _plainly(first_line(error, key), host(asked["server"]))
    if run is None:
        run = _start(asked, None)
    send = f"swanlab sync {shlex.quote(as_typed(str(run._ctx.run_dir), here))}"
    if why is None:
        say({"remark": f"swanlab shows this run at {run.url}"})
        return SwanLabRun(run, say, send)
    say({"remark": f"swanlab is offline ({why}); afterwards: {send}"})
    return SwanLabRun(run, say, "")


def _start(asked: Message, key: str | None) -> Any:
    import swanlab

    settings: dict[str, Any] = {
        "api_host": asked["server"],
        "interactive": False,
        # Nothing is collected from the machine, the environment or what is printed.
        "probe": dict.fromkeys(_COLLECTED, False),
        "terminal": {"proxy_type": "none"},
    }
    if key:
        settings["api_key"] = key
    return swanlab.init(
        mode="online" if key else "offline",
        log_dir=asked["folder"],
        project=asked["project"],
        workspace=asked["workspace"],
        name=asked["name"],
        group=asked["group"],
        tags=asked["tags"] or None,
        id=asked["id"],
        resume="allow",
        public=False,
        config=asked["config"],
        settings=swanlab.Settings(**settings),
    )


def _plainly(text: str, where: str) -> str:
    """Return why a server was not told, without the innards of the libraries."""
    if "API key" in text or "401" in text or "initialize the SwanLab client" in text:
        return f"{where} refuses the key: swanlab login --relogin"
    return f"{where}: {text}"


if __name__ == "__main__":
    serve("swanlab", begin)
