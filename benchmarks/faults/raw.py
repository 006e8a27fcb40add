"""The same faults in the same small run of TRL's SFTTrainer, resumed as its documentation says."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cells import Ground
from faults import CRASH
from harness import Server, digest, events_of
from ours import Outcome

METHOD = "raw TRL: lora + sft"


class RawBench:
    """Runs the raw loop; `exact` means that weights and losses are those of the whole run."""

    def __init__(self, server: Server, ground: Ground, steps: int = 4, save_steps: int = 2) -> None:
        self.server, self.ground = server, ground
        self.steps, self.save_steps = steps, save_steps
        self.home = Path(tempfile.mkdtemp(dir=ground.home))
        code, _, self.events = self.go("whole", {"kind": "count"})
        assert code == 0, (self.home / "whole.txt").read_text()
        self.state = self.state_of("whole")

    def go(
        self, place: str, fault: dict[str, Any] | None = None,
        kill: Callable[[int], None] | None = None,
    ) -> tuple[int, str, tuple[str, ...]]:  # fmt: skip
        """Run in a folder, going on with what is there; return how it ended."""
        out = self.home / f"{place}.txt"
        argv = [str(self.ground.home), str(self.home / place), str(self.steps)]
        pid = self.server.start([*argv, str(self.save_steps)], out, fault)
        if kill:
            with suppress(ProcessLookupError):
                kill(pid)
        code = self.server.end()
        return code, out.read_text(errors="replace"), events_of(out)

    def state_of(self, place: str) -> tuple[str, list[float]]:
        """Return the hash of the published adapter, and the loss of every step."""
        final = self.home / place / "final"
        return digest(final / "adapter_model.safetensors"), self.losses(final)

    def losses(self, folder: Path) -> list[float]:
        """Return the losses that a trainer's state tells."""
        state = json.loads((folder / "trainer_state.json").read_text("utf-8"))
        return [entry["loss"] for entry in state["log_history"] if "loss" in entry]

    def counted(self, fault: str) -> tuple[str, ...]:
        """Return the kinds of all events at which a fault can strike."""
        if fault == "crash":
            return self.events
        return self.go("counted", {"kind": "count full"})[2]

    def strike(self, fault: str, n: int, event: str) -> Outcome:
        """Let the n-th event crash or find the disk full, go on, and compare."""
        place = f"{fault}-{n}"
        code, text, _ = self.go(place, {"kind": fault, "at": n})
        if code != (CRASH if fault == "crash" else 1):
            return Outcome(METHOD, fault, event, f"exit code {code}: {text[-200:]}")
        return Outcome(METHOD, fault, event, self._ended(place))

    def kill(self, seed: int, times: int, longest: float) -> list[Outcome]:
        """Kill a run so many times in a row, each at a random moment, and compare at the end."""
        dice, place, kills = random.Random(seed), f"kill-{seed}", 0

        def kill(pid: int) -> None:
            time.sleep(dice.uniform(0.01, longest))
            os.kill(pid, signal.SIGKILL)

        for _ in range(times):
            code, _, _ = self.go(place, kill=kill)
            if code >= 0:
                break  # it was faster, or is stuck
            kills += 1
        result = self._ended(place)
        return [Outcome(METHOD, "SIGKILL", "any time", result) for _ in range(kills)]

    def _ended(self, place: str) -> str:
        code, text, _ = self.go(place)
        if code != 0:
            lines = [line for line in text.splitlines() if line.strip()]
            result = f"cannot go on: {lines[-1].partition(':')[0] if lines else code}"
        else:
            result = "exact" if self.state_of(place) == self.state else "other bits"
        shutil.rmtree(self.home / place, ignore_errors=True)
        return result
