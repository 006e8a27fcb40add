"""What goes wrong in training on sampled answers, while the reward still rises; said once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

AT_FIRST = 3
"""Steps whose mean the later ones are held against; and so many of the last ones are averaged."""
FAR = 30.0
"""Nats of an answer from the reference: what it says is then hardly the reference's any more."""
FLAT = 0.1
LONGER, SHORTER = 2.0, 0.5
MOST_FLAT = 0.8
"""The share of groups without variance above which a person is told."""
TOLD = ("reward", "kl", "length", "entropy", "frac_reward_zero_std")


class Diagnostics:
    """Follows a run's metrics. note: is told what a person should read, each thing once.

    target: of the adaptive coefficient. start: what the divergence of the reference itself may be.
    knobs: the settings that hold the policy near its reference, and those that keep its entropy.
    """

    def __init__(
        self,
        note: Callable[[str], None],
        target: float | None = None,
        start: float = 0.0,
        knobs: tuple[str, str] = ("kl_coef", "kl_coef or entropy_coef"),
    ) -> None:
        self.note, self.knobs = note, knobs
        self.far = 3 * target if target else FAR + start
        self.steps = 0
        self.first: dict[str, float] = dict.fromkeys(TOLD, 0.0)
        self.last: list[dict[str, float]] = []
        self.told: list[str] = []
        self.differs = False

    def see(self, means: Mapping[str, float], spread: float) -> None:
        """Take in a step's means, and the variance of its rewards; say what is wrong by now.

        frac_reward_zero_std: in a step of groups, the share of those without variance. What a
        method does not measure counts as 0.
        """
        now = {name: means.get(name, 0.0) for name in TOLD}
        before = self.last[-1]["reward"] if self.last else now["reward"]
        same = spread == 0 and math.isclose(before, now["reward"], rel_tol=1e-6)
        self.differs = self.differs or not same
        self.steps += 1
        self.last = [*self.last, now][-AT_FIRST:]
        if self.steps <= AT_FIRST:
            self.first = {name: self.first.get(name, 0.0) + now[name] / AT_FIRST for name in TOLD}
            if self.steps == AT_FIRST:
                self._flat()
            return
        if (flat := self._lately("frac_reward_zero_std")) > MOST_FLAT and self.differs:
            self._say(
                "groups",
                f"in {flat:.0%} of the groups of late, at step {self.steps}, every answer gets the"
                " same reward, from which nothing is learnt; take easier or harder prompts, or"
                " raise num_generations or temperature",
            )
        kl, length, entropy = (self._lately(name) for name in ("kl", "length", "entropy"))
        if kl > self.far:
            self._say(
                "kl",
                f"the policy moves far from the reference: {kl:.1f} nats an answer at step"
                f" {self.steps}; raise {self.knobs[0]}, or lower learning_rate",
            )
        start = self.first["length"]
        if not SHORTER * start <= length <= LONGER * start:
            self._say(
                "length",
                f"answers drift in length: {start:.1f} tokens at first, {length:.1f} at step"
                f" {self.steps}; look whether the reward pays for length",
            )
        start = self.first["entropy"]
        if entropy < FLAT * start:
            self._say(
                "entropy",
                f"the entropy collapses: {start:.3f} nats a token at first, {entropy:.4f} at step"
                f" {self.steps}; raise {self.knobs[1]}, or stop earlier",
            )

    def conclude(self, before: Mapping[str, float], after: Mapping[str, float]) -> None:
        """Say where the reward rose in training while held-out quality fell."""
        self._flat()
        if self.steps <= AT_FIRST or self._lately("reward") <= self.first["reward"]:
            return
        better_low = ("loss", "perplexity", "kl", "length")
        fallen = [
            f"{name} {before[name]:.3f} -> {after[name]:.3f}"
            for name in after
            if name in before and name not in better_low and after[name] < before[name] - 0.01
        ]
        if fallen:
            self.note(
                f"the reward rose ({self.first['reward']:.3f} -> {self._lately('reward'):.3f})"
                f" while held-out quality fell: {', '.join(fallen)}; the policy may exploit the"
                " reward (reward hacking)"
            )

    def _flat(self) -> None:
        if self.steps and not self.differs:
            self._say(
                "same",
                f"every answer so far has got the same reward, {self.last[-1]['reward']:.3f}, from"
                " which nothing can be learnt; look whether the reward fits these prompts, and has"
                " the right answers where it compares with them (data.columns.answers)",
            )

    def _lately(self, name: str) -> float:
        return sum(step.get(name, 0.0) for step in self.last) / max(len(self.last), 1)

    def _say(self, what: str, text: str) -> None:
        if what not in self.told:
            self.told.append(what)
            self.note(text)

    def state(self) -> dict[str, Any]:
        """Return what it has seen, as plain data."""
        names = ("steps", "first", "last", "told", "differs")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` told."""
        self.steps, self.first = state["steps"], dict(state["first"])
        self.last, self.told = list(state["last"]), list(state["told"])
        self.differs = state.get("differs", True)  # a checkpoint may be older
