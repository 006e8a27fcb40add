"""What the parts of a planned stage find out, for the plan."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from llmft.planning.batch_choice import Chosen, Counts
from llmft.planning.caching_allocator import CachingAllocator
from llmft.planning.fake_tensors import Body
from llmft.planning.memory_tracker import MemoryTracker
from llmft.planning.processes import ALONE, Processes


@dataclass(frozen=True, slots=True)
class SampledCounts:
    """How many answers a stage samples to how many prompts, and of how many tokens at most."""

    prompts: int
    answers: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Computed:
    """FLOPs of the matrix products of a plan, and of what they are.

    tokens, items: those of the training passes that were computed, with train_flops; tokens is 0
    where items are answers that the stage samples. Where rows are padded tokens are those of padded
    rows, and the passes of an epoch have `padding` times the tokens of its rows.
    passes_per_step: of a whole optimiser step, in one process. summed_bytes: of the gradients that
    processes sum in a step; gathered_bytes: of the layers that they put together in a pass.
    prepare_flops: before the first step, for prepared_items. scored_flops: one batch's loss.
    rollout_flops: beside the decoding, for one step.
    decoded: prompts, batch size and new tokens of the answers that a stage samples at a time.
    """

    train_flops: int = 0
    tokens: int = 0
    padding: float = 1.0
    items: int = 0
    passes_per_step: float = 0.0
    prepare_flops: int = 0
    prepared_items: int = 0
    scored_flops: int = 0
    rollout_flops: int = 0
    decoded: tuple[int, int, int] = (0, 0, 0)
    summed_bytes: int = 0
    gathered_bytes: int = 0


@dataclass
class PlanState:
    """What the parts of a planned stage find out. in_ram: it is trained where its files are mapped.

    processes: those that train together; what is counted is one's, the busiest one's.
    max_new_tokens: of the answers that `decode` was last asked for. trained_bytes: of all that is
    trained. saved_bytes: of what the stage leaves behind.

    judging: an evaluation is followed now. assumed: its rows cannot be read from here.
    computed: for an estimate of the time.
    """

    in_ram: bool
    processes: Processes = ALONE
    memory: MemoryTracker = field(init=False)
    body: Body = field(default_factory=Body)
    counts: Counts | None = None
    sampled: SampledCounts | None = None
    chosen: Chosen | None = None
    remarks: list[str] = field(default_factory=list)
    max_new_tokens: int = 0
    trained_bytes: int = 0
    saved_bytes: int = 0
    judging: bool = False
    assumed: bool = False
    computed: Computed = field(default_factory=Computed)

    def __post_init__(self) -> None:
        """Begin to count: on a GPU as its allocator does."""
        self.memory = MemoryTracker(None if self.in_ram else CachingAllocator())

    def computes(self, **found: Any) -> None:
        """Keep something of `computed`."""
        self.computed = replace(self.computed, **found)

    def remark(self, text: str) -> None:
        """Keep something that the reader of the plan should know."""
        if text not in self.remarks:
            self.remarks.append(text)
