"""What a step of distillation does: choose who writes each answer, and learn the teacher's view."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmft.api import Answer, Encoded, EncodedPrompt, SamplingParams, StageContext
from llmft.toolkit import all_reduce_sum, divergence
from llmft_alignments.gkd.config import GkdConfig
from llmft_alignments.online.sampling import Sampler, rollout_row
from llmft_alignments.pairs import over_batches

if TYPE_CHECKING:
    import torch

    from llmft.modeling.divergence import Divergence

_IGNORED = -100
HELD_OUT = 2**31
"""In the place of a step, so that no answer of an evaluation is drawn like one of training."""
_OF_THE_TEACHER = 1


class GkdObjective:
    """Distillation as an online objective: see `llmft.api.OnlineObjective`.

    An answer's writer is drawn for each row: with probability `lmbda` the trained model, as it is
    at the step's start (Agarwal et al. 2024, algorithm 1, which draws it for each batch).
    """

    items_per_prompt = 1
    rates_per_step = 1

    def __init__(self, config: GkdConfig, context: StageContext) -> None:
        self.config, self.context = config, context
        self.teacher = context.models.other_model(config.teacher)
        self.writer = Writer(config, context)
        self._tallies: Any = None

    def sample_rollouts(
        self,
        items: Sequence[Encoded],
        numbers: Sequence[int],
        step: int,
        stopping: Callable[[], bool],
    ) -> list[Encoded]:
        asked = [place for place, item in enumerate(items) if answer_start(item)]  # has a prompt
        own = [place for place in asked if self._writes(step, numbers[place])]
        rest = sorted(set(asked) - set(own))
        rows = list(items)
        written: list[Answer] = []
        if self.config.lmbda:
            written = self.writer.write(rows, own, numbers, (step,), stopping=stopping)
        if self.config.seq_kd:
            seed = (step, _OF_THE_TEACHER)
            self.writer.write(rows, rest, numbers, seed, model=self.teacher, stopping=stopping)
        ended = sum(answer.ended for answer in written)
        tokens = sum(len(answer.ids) for answer in written)
        self._tallies = [len(rows), len(written), tokens, ended]
        return rows

    def _writes(self, step: int, number: int) -> bool:
        """Return whether the trained model writes the answer of a step's row."""
        import numpy as np

        if self.context.planned:  # what takes the most: the teacher is the larger one
            return self.config.lmbda == 1 or (self.config.lmbda > 0 and not self.config.seq_kd)
        draw = np.random.default_rng((self.context.seed, step, number)).random()
        return bool(draw < self.config.lmbda)

    def updates(self, items: int, step: int) -> Iterator[Sequence[int]]:
        """Yield one update, of all rows."""
        yield range(items)

    def should_continue(self, means: Mapping[str, float]) -> bool:
        return True

    def weight(self, batch: Sequence[Encoded]) -> float:
        return float(sum(row.n_labels for row in batch))

    def loss(
        self, model: Any, batch: Sequence[Encoded]
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        return _between(self.config, model, self.teacher, batch).nats_N.sum(), {}

    def step_metrics(self) -> Mapping[str, tuple[float, float]]:
        import torch

        whole = all_reduce_sum(torch.tensor(self._tallies, dtype=torch.float64))
        rows, written, tokens, ended = whole.tolist()
        metrics = {"on_policy": (written, rows)}
        if written:
            metrics |= {"length": (tokens, written), "ended": (ended, written)}
        return metrics

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass


class Writer(Sampler):
    """Puts sampled answers in the place of rows' own, of tokens that both models can read."""

    def __init__(self, config: GkdConfig, context: StageContext) -> None:
        both = (context.models.model, context.models.other_model(config.teacher))
        params = SamplingParams(
            config.max_new_tokens,
            config.temperature,
            config.top_p,
            config.top_k,
            vocabulary=min(one.config.get_text_config().vocab_size for one in both),
        )
        super().__init__(context, params, config.local_rollout_forward_batch_size)
        self._cut = False

    def write(
        self,
        rows: list[Encoded],
        places: Sequence[int],
        numbers: Sequence[int],
        seed: Sequence[int],
        *,
        model: Any = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> list[Answer]:
        """Replace the answers at these places, and return them; all processes take part.

        Of a conversation the last answer is replaced, and what came before is not learnt. model:
        default: the one that is trained.
        """
        prompts = [self._prompt(rows[place]) for place in places]
        answers = self.sample_rollouts(
            prompts, seed, [numbers[place] for place in places], model=model, stopping=stopping
        )
        for place, prompt, answer in zip(places, prompts, answers, strict=True):
            rows[place] = rollout_row(prompt, answer)
        return answers

    def _prompt(self, row: Encoded) -> EncodedPrompt:
        """Return what stands before a row's last answer, its end where it is long."""
        ids = row.input_ids[: answer_start(row)]
        longest = self.context.data.max_length
        if longest is not None and len(ids) > (room := longest - self.params.max_new_tokens):
            ids = ids[len(ids) - room :]
            if not self._cut:
                self._cut = True
                self.context.log.note(
                    f"prompts that leave no room for an answer of {self.params.max_new_tokens}"
                    " tokens lose their start where a model writes it"
                )
        return EncodedPrompt(ids, (_IGNORED,) * len(ids), row.origin)


def answer_start(row: Encoded) -> int:
    """Return where a row's last answer begins: how many tokens stand before it."""
    end = len(row.labels)
    while end and row.labels[end - 1] == _IGNORED:  # what a template writes after the answer
        end -= 1
    start = end
    while start and row.labels[start - 1] != _IGNORED:
        start -= 1
    return start if end else len(row.labels)


def _between(config: GkdConfig, model: Any, teacher: Any, rows: Sequence[Encoded]) -> Divergence:
    return divergence(model, teacher, rows, config.beta, config.divergence_temperature)


def divergences(config: GkdConfig, context: StageContext, items: Sequence[Encoded]) -> list[float]:
    """Return the mean divergence of each row's answer tokens, in nats; sampled where it has none.

    All processes take part.
    """
    rows = list(items)
    bare = [place for place, row in enumerate(rows) if not row.n_labels]
    if bare:
        Writer(config, context).write(rows, bare, range(len(rows)), (HELD_OUT,))
    model, teacher = context.models.model, context.models.other_model(config.teacher)

    def mean(some: Sequence[Encoded]) -> torch.Tensor:
        found = _between(config, model, teacher, some)
        nats = found.nats_N.new_zeros(len(some)).index_add(0, found.row_N, found.nats_N)
        return (nats / nats.new_tensor([row.n_labels for row in some])).clamp(min=0)  # of rounding

    with context.models.precision():
        return over_batches(context, rows, mean, "compare with the teacher").tolist()
