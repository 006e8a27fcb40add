"""The process that writes trackio's files."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmft_trackers.child import Message, Say, as_typed, serve


class TrackioRun:
    """A run in trackio's files."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._last: dict[str, int] = {}

    def tell(self, messages: Sequence[Message]) -> None:
        """Write numbers; trackio takes no configuration after the first of them."""
        for message in messages:
            if "log" in message:
                self._last[message["stage"]] = message["step"]
                self._run.log(dict(message["log"]), step=message["step"])
            if "config" in message:
                self._run.log(dict(message["config"]), step=0)
            if "summary" in message:
                stage, numbers = message["stage"], message["summary"]
                told = {f"{stage}/result/{name}": value for name, value in numbers.items()}
                if told:
                    self._run.log(told, step=message["step"])

    def finish(self, done: bool) -> bool:
        """Write what is left."""
        self._run.finish()
        return True


def begin(asked: Message, here: Path, say: Say) -> TrackioRun:
    """Start the run, or go on with it."""
    os.environ |= {
        "TRACKIO_DIR": asked["folder"],
        # Whose key is saved in the home folder is nobody's business here.
        "HF_HOME": str(Path.cwd() / "hub"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }
    import trackio

    run = trackio.init(
        project=asked["project"],
        name=asked["name"],
        group=asked["group"],
        config=_config(asked["config"]),
        resume="allow",
        embed=False,
        # Nothing is collected from the machine.
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    folder = shlex.quote(as_typed(asked["folder"], here))
    project = shlex.quote(asked["project"])
    say({"remark": f"to see this run: TRACKIO_DIR={folder} trackio show --project {project}"})
    return TrackioRun(run)


def _config(recipe: Any) -> dict[str, Any]:
    """Return what trackio takes: its own keys begin with an underscore."""
    return {name: value for name, value in recipe.items() if not name.startswith("_")}


if __name__ == "__main__":
    serve("trackio", begin)
