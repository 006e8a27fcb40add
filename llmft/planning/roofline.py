"""How long a run would take on a named GPU: the roofline of what a plan has counted.

A pass takes what the slowest of three takes: the matrix products at the chip's peak, reading the
weights at its memory's bandwidth (Williams et al. 2009), or the host, which starts each kernel.
The peaks are the makers' own, bfloat16 and dense; the shares of them that a run reaches are
measured on two chips (docs/performance.md), and estimated on every other.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from llmft.api.errors import RecipeError
from llmft.planning.planner import RecipePlan, StagePlan
from llmft.planning.processes import Processes
from llmft.planning.timing import (
    NONE,
    SCORING,
    SET_UP,
    TRAINING,
    WORKING,
    PlanTime,
    Seconds,
    StageTime,
    together,
)
from llmft.recipes.recipe import Stage


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU: its memory in GiB, bfloat16 FLOP/s without sparsity, and bytes a second.

    link: by what it reaches the other GPUs of its machine; a bridge that has to be bought is none.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    link: str = "PCIe 4"


CARDS = tuple(
    Card(name, memory, tera * 1e12, giga * 1e9, link)
    for name, memory, tera, giga, link in (
        ("RTX 3090", 24, 71, 936, "PCIe 4"), ("RTX 4080", 16, 97.5, 717, "PCIe 4"),
        ("RTX 4090", 24, 165.2, 1008, "PCIe 4"), ("RTX 5090", 32, 209.5, 1792, "PCIe 5"),
        ("RTX A6000", 48, 154.8, 768, "PCIe 4"), ("RTX 6000 Ada", 48, 364.2, 960, "PCIe 4"),
        ("A10", 24, 125, 600, "PCIe 4"), ("A10G", 24, 70, 600, "PCIe 4"),
        ("L4", 24, 121, 300, "PCIe 4"), ("L40S", 48, 362, 864, "PCIe 4"),
        ("A100 40GB", 40, 312, 1555, "NVLink 3"), ("A100", 80, 312, 2039, "NVLink 3"),
        ("H100 PCIe", 80, 756, 2000, "PCIe 5"), ("H100", 80, 989, 3350, "NVLink 4"),
        ("H200", 141, 989, 4800, "NVLink 4"), ("B200", 180, 2250, 8000, "NVLink 5"),
    )
)  # fmt: skip
LINKS = {
    "PCIe 4": 32e9, "PCIe 5": 64e9, "NVLink 3": 300e9, "NVLink 4": 450e9, "NVLink 5": 900e9,
}  # fmt: skip
"""Bytes a second in one direction: 16 lanes, or all of a GPU's links to its machine's switches."""

MEASURED_ON = ("H100", "H200")
REACHED = (0.25, 0.38, 0.6)
"""The share of the matrix peak that training reaches: at the worst, likely, at best.

LoRA on Llama 3 8B's shape, rows of 2,048 tokens, on an H100 and an H200: 0.35 to 0.36 of what a
large product reached, 0.44 with Liger's kernels, 0.5 and 0.6 where nothing is computed again.
"""
STREAMED = (0.4, 0.6, 0.8)
"""The share of the bandwidth at which weights and caches are read. Estimated."""
HOST_SECONDS = (0.004, 0.010, 0.016)
"""What the host takes to start a layer's kernels in a training pass: at best, likely, at worst.

0.0099 was measured beside an H200: LoRA on 32 layers, one row of 64 tokens, in 0.32 s.
"""
HOST_TOKEN_SECONDS = (0.0002, 0.0005, 0.0025)
"""The same for one token that is decoded: 14 to 15 ms were measured on an H200, for 32 layers.

The worst is where the model's steps cannot be recorded: 79 ms.
"""
SHORTEST_ANSWERS = 0.25
"""How long answers may be at the least, as a share of the most: most end before that. Assumed."""
OF_A_MACHINE = 8
"""GPUs that a machine has at most."""
SENT = (0.15, 0.4, 0.75)
"""The share of a link at which gradients are summed: at the worst, likely, at best. Assumed.

At the worst: cards that reach each other through the host's memory only, such as GeForce.
"""
SYNC_SECONDS = (0.001, 0.003, 0.02)
"""What a step's other talk takes, of some numbers by gloo: at best, likely, at worst. Assumed."""
LOAD_BANDWIDTH = (0.3e9, 1e9, 3e9)
"""Bytes a second at which weights come from a disk: at the worst, likely, at best. Assumed."""


def named_card(text: str) -> Card | None:
    """Return the GPU of a name such as H100 or rtx-4090; None where it names a size of memory.

    Raises RecipeError (E090) for the name of a GPU that is not known here.
    """
    wanted = _plain(text)
    for card in CARDS:
        names = {_plain(card.name), _plain(card.name).removeprefix("rtx")}
        if wanted.removeprefix("nvidia") in names | {f"{_plain(card.name)}{card.memory}gb"}:
            return card
    if re.fullmatch(r"\d+(\.\d+)?\s*([a-z]*)", text.strip().lower()) or not any(
        letter.isalpha() for letter in text
    ):
        return None
    raise RecipeError(
        "E090",
        f"the GPU '{text}' is not one whose speed is known",
        fix=f"name its memory, such as --gpu 24GB, or one of: {', '.join(c.name for c in CARDS)}",
    )


def card_here(device_name: str) -> Card | None:
    """Return the GPU of a device's own name, such as 'NVIDIA H100 80GB HBM3'; None: not known."""
    words = set(re.split(r"[\s_/-]+", device_name.lower()))
    if words & {"laptop", "max", "mig"}:  # slower than the card of that name
        return None
    fitting = [card for card in CARDS if set(card.name.lower().split()) <= words]
    return max(fitting, key=lambda card: len(card.name.split()), default=None)


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+", "", text).lower()


def on_card(plan: RecipePlan, card: Card) -> PlanTime:
    """Return a recipe's time on a GPU, estimated. A stage that was not followed is left out."""
    layers = int(getattr(plan.base.config.get_text_config(), "num_hidden_layers", 0) or 0)
    found = [
        _stage_time(stage, plan.recipe.stage(stage.name), card, max(layers, 1), plan.processes)
        for stage in plan.stages
        if stage.followed
    ]
    known = "measured on one" if card.name in MEASURED_ON else "measured on H100 and H200 only"
    remark = (
        f"estimated by the roofline of {card.name} ({card.flops / 1e12:,.0f} TFLOP/s,"
        f" {card.bandwidth / 1e9:,.0f} GB/s): {REACHED[1]:.0%} of the peak, {known}"
    )
    if plan.processes.several:
        remark += (
            f"; gradients are summed over {card.link} ({LINKS[card.link] / 1e9:,.0f} GB/s), of one"
            f" machine, at {SENT[1]:.0%} of that, assumed"
        )
    if plan.processes.count > OF_A_MACHINE:
        remark += f"; more than {OF_A_MACHINE} stand in several, whose network is not counted"
    return together(plan, found, remark)


def _stage_time(
    stage: StagePlan, spec: Stage, card: Card, layers: int, processes: Processes
) -> StageTime:
    work = _Work(stage, spec, card, layers, processes)
    parts = {SET_UP: work.set_up()}
    lacks = []
    if stage.trains:
        if stage.counts is not None and stage.computed.items:
            parts[TRAINING] = work.training()
        else:
            lacks.append(TRAINING)
        if stage.held_out:
            parts[SCORING] = work.scoring()
    elif stage.drawn is not None:
        parts[WORKING] = work.answers(stage.drawn.answers)
    return StageTime(stage.name, parts, "estimated", tuple(lacks))


@dataclass(frozen=True)
class _Work:
    stage: StagePlan
    spec: Stage
    card: Card
    layers: int
    processes: Processes

    @property
    def weights(self) -> int:
        """Bytes of the base, as stored."""
        kinds = self.stage.peaks[0].by_kind if self.stage.peaks else {}
        return kinds.get("weights", 0) + kinds.get("trained weights", 0)

    def set_up(self) -> Seconds:
        """Return the time to load the weights, and to compute what comes before the first step."""
        slow, likely, fast = LOAD_BANDWIDTH
        load = Seconds(self.weights / fast, self.weights / likely, self.weights / slow)
        computed, counts = self.stage.computed, self.stage.counts
        if not computed.prepare_flops or counts is None:
            return load
        more = self.processes.share(counts.items / max(computed.prepared_items, 1))
        return load + self._products(computed.prepare_flops * more)

    def training(self) -> Seconds:
        """Return the time of all optimiser steps, and of the answers that they sample."""
        counts, computed, train = self.stage.counts, self.stage.computed, self.spec.train
        assert counts is not None
        passes = counts.steps * computed.passes_per_step
        if computed.tokens:
            rows = train.rows_per_step(self.processes.count)
            seen = counts.steps * rows / max(counts.items, 1) * counts.busiest
            there = counts.tokens * computed.padding
            flops = computed.train_flops / computed.tokens * there * seen
        else:  # as long as the longest answers that were planned
            flops = computed.train_flops * passes
        again = 1 / train.gradient_checkpointing_kwargs.every_n_layers
        reads = 2 + again * train.gradient_checkpointing
        whole = self._slowest(
            self._products(flops),
            self._reads(self.weights * reads * passes),
            _host(HOST_SECONDS).times(self.layers * passes),
            self._over_the_link(self.processes.gathered(computed.gathered_bytes) * passes),
        )
        prompts, batch, new = computed.decoded
        if prompts and not computed.tokens:
            whole += self._decoding(counts.steps * math.ceil(prompts / max(batch, 1)), new)
            whole += self._products(computed.rollout_flops * counts.steps)
        return whole + self._summing().times(counts.steps)

    def _summing(self) -> Seconds:
        """Return the time in which a step's gradients are summed over the processes."""
        if not self.processes.several:
            return NONE
        sent = self.processes.sent(self.stage.computed.summed_bytes)
        return self._over_the_link(sent) + Seconds(*SYNC_SECONDS)

    def _over_the_link(self, size: float) -> Seconds:
        if not size:
            return NONE
        worst, likely, best = (size / (share * LINKS[self.card.link]) for share in SENT)
        return Seconds(best, likely, worst)

    def scoring(self) -> Seconds:
        """Return the time of the losses and answers before, during and after training."""
        stage, asked = self.stage, self.spec.evaluate
        assert asked is not None
        more = stage.evaluations
        size = self.spec.train.per_device_eval_batch_size
        batches = math.ceil(self.processes.share(math.ceil(stage.held_out / size)))
        phases = {peak.phase for peak in stage.peaks}
        found = NONE
        if flops := stage.computed.scored_flops:
            times = batches * (2 + (more.times if more else 0))
            found += self._slowest(
                self._products(flops * times),
                self._reads(self.weights * times),
                _host(HOST_TOKEN_SECONDS).times(self.layers * times),
            )
        if "generate" in phases:
            times = batches * (2 + (more.with_answers if more else 0))
            found += self._decoding(times, asked.max_new_tokens)
        return found

    def answers(self, count: int) -> Seconds:
        """Return the time to sample so many answers in a task."""
        _, batch, new = self.stage.computed.decoded
        return self._decoding(math.ceil(count / max(batch, 1)), new)

    def _decoding(self, batches: float, new: int) -> Seconds:
        """Return the time to answer so many batches: one reading of the weights for each token."""
        cache = max((peak.by_kind.get("KV cache", 0) for peak in self.stage.peaks), default=0)
        tokens = batches * new
        longest = self._slowest(
            self._reads((self.weights + cache / 2) * tokens),
            _host(HOST_TOKEN_SECONDS).times(self.layers * tokens),
        )
        return Seconds(longest.low * SHORTEST_ANSWERS, longest.likely, longest.high)

    def _products(self, flops: float) -> Seconds:
        worst, likely, best = (flops / (share * self.card.flops) for share in REACHED)
        return Seconds(best, likely, worst)

    def _reads(self, size: float) -> Seconds:
        worst, likely, best = (size / (share * self.card.bandwidth) for share in STREAMED)
        return Seconds(best, likely, worst)

    @staticmethod
    def _slowest(*found: Seconds) -> Seconds:
        return Seconds(
            max(one.low for one in found),
            max(one.likely for one in found),
            max(one.high for one in found),
        )


def _host(seconds: tuple[float, float, float]) -> Seconds:
    return Seconds(*seconds)
