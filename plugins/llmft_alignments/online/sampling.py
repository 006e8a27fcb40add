"""Answers of the policy as it is now, and the rows that they are with their prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from llmft.api import Answer, Encoded, EncodedPrompt, SamplingParams, StageContext, StageError

T = TypeVar("T")


class Sampler:
    """Samples the policy's answers. batch_size: how many at a time on one device.

    stop_token: a text that ends an answer too; the `params` need not have its ids.
    """

    def __init__(
        self,
        context: StageContext,
        params: SamplingParams,
        batch_size: int,
        stop_token: str | None = None,
    ) -> None:
        self.context, self.batch_size, self.stop_token = context, batch_size, stop_token
        self.more_stops = _stop_ids(stop_token, context)
        self.params = replace(params, stop_token_ids=self.more_stops)
        self._told = False

    def sample_rollouts(
        self,
        prompts: Sequence[EncodedPrompt],
        seed: Sequence[int],
        numbers: Sequence[int],
        *,
        model: Any = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> list[Answer]:
        """Return an answer to each prompt; numbers name their random numbers."""
        return self.context.sampler.decode(
            [prompt.input_ids for prompt in prompts],
            self.params,
            seed=seed,
            numbers=numbers,
            model=model,
            batch_size=self.batch_size,
            stopping=stopping,
        )

    def note_unmet_stop(self, answers: Sequence[Answer]) -> None:
        """Say once that no answer of a step met the stop_token."""
        if self._told or not answers:
            return
        if not any(answer.ids and answer.ids[-1] in self.more_stops for answer in answers):
            self._told = True
            self.context.log.note(
                f"no answer of a step has met the stop_token {self.stop_token!r}: allow longer"
                " answers, or give a text that the model writes"
            )

    def batches(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        """Yield the items, so many at a time as fit on one device."""
        for start in range(0, len(items), self.batch_size):
            yield items[start : start + self.batch_size]


def sample_groups(
    sampler: Sampler,
    prompts: Sequence[EncodedPrompt],
    numbers: Sequence[int],
    each: int,
    step: int,
    stopping: Callable[[], bool],
) -> tuple[list[EncodedPrompt], list[Answer]]:
    """Return a step's prompts, each so many times, and an answer to every one of them.

    numbers: which of the step's prompts they are.
    """
    repeated = [prompt for prompt in prompts for _ in range(each)]
    own = [number * each + k for number in numbers for k in range(each)]
    answers = sampler.sample_rollouts(repeated, (step,), own, stopping=stopping)
    if sampler.more_stops:
        sampler.note_unmet_stop(answers)
    return repeated, answers


def rollout_row(prompt: EncodedPrompt, answer: Answer) -> Encoded:
    """Return a prompt with its answer, which alone is learnt."""
    ids = (*prompt.input_ids, *answer.ids)
    return Encoded(ids, (*prompt.labels, *answer.ids), prompt.origin)


def _stop_ids(wanted: str | None, context: StageContext) -> tuple[int, ...]:
    """Return every token whose text ends with the stop_token's: '.' may be one, and ' .' another.

    Raises StageError where there is none, as the text is several tokens to this tokenizer.
    """
    if wanted is None:
        return ()
    tokenizer = context.models.tokenizer
    names = sorted(tokenizer.get_vocab().items(), key=lambda pair: int(pair[1]))
    special = set(tokenizer.all_special_tokens)
    found = tuple(
        int(number)
        for name, number in names
        if name == wanted
        or (name not in special and tokenizer.convert_tokens_to_string([name]).endswith(wanted))
    )
    if not found:
        raise StageError(
            "E300",
            f"no token of this tokenizer ends with the stop_token {wanted!r}",
            fix="give a shorter text, such as a full stop, or leave it out",
        )
    return found
