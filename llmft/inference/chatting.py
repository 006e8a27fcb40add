"""A conversation with a finished run, answer after answer, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from llmft.api import Message, Prompt, SamplingParams
from llmft.api.errors import DataError, RecipeError
from llmft.inference.growing_text import GrowingText
from llmft.inference.trained import TrainedStage
from llmft.modeling.base_model import max_positions


@dataclass
class Conversation:
    """The turns so far, and the model that answers the next one.

    params: how answers are sampled. seed: of the sampling; each answer has random numbers of its
    own. whole: the turns before go with each question, through the chat template; False: each
    question is asked alone, in the form that the run's data set gives it.
    """

    trained: TrainedStage
    params: SamplingParams
    seed: int = 0
    system: str = ""
    whole: bool = True
    messages: list[Message] = field(default_factory=list)
    answered: int = 0

    def __post_init__(self) -> None:
        if self.whole and not getattr(self.trained.base.tokenizer, "chat_template", None):
            what = "the tokenizer has no chat template, and a conversation needs one"
            raise DataError("E108", what, fix="set model.chat_template in the recipe")
        self._check_system(self.system)

    @cached_property
    def model(self) -> Any:
        """The run's model; loaded once."""
        return self.trained.model()

    @cached_property
    def base_model(self) -> Any:
        """The untrained base as a model of its own; loaded once, where it is asked for."""
        return self.trained.model(with_adapter=False)

    def set_system(self, text: str) -> None:
        """Begin again, with another system prompt."""
        self._check_system(text)
        self.system = text
        self.reset()

    def _check_system(self, text: str) -> None:
        if text and not self.whole:
            raise RecipeError(
                "E090",
                "this run was trained on single questions, which have no system prompt",
                fix="add --chat to talk through the chat template",
            )

    def reset(self) -> None:
        """Forget the turns; the system prompt stays."""
        self.messages.clear()

    def reply(
        self,
        question: str,
        on_text: Callable[[str], None] = lambda _: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> str:
        """Return the answer to a question, which both become part of the conversation.

        on_text: told each new piece of the answer. stopping: asked before each token; the answer
        ends where it says so. Raises DataError (E106) where the conversation leaves no room.
        """
        asked = self._turn(question)
        text = self._answer([*self.messages, asked], on_text, stopping)
        self.messages += [asked, Message(role="assistant", content=text)]
        self.answered += 1
        return text

    def base_reply(
        self,
        on_text: Callable[[str], None] = lambda _: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> str:
        """Return what the untrained model answers to the last question; nothing is kept.

        Raises RecipeError (E090) where nothing was asked yet.
        """
        if not self.messages:
            raise RecipeError("E090", "nothing was asked yet", fix="ask first, then /base")
        with self._untrained() as model:
            return self._answer(self.messages[:-1], on_text, stopping, model)

    @contextmanager
    def _untrained(self) -> Iterator[Any]:
        """Yield the base: the model with its adapter off, or a model of its own where need be."""
        adapter, bound = self.trained.bound.model_adapter, self.trained.bound
        # What an adapter stands on may be trained, too.
        if adapter is None or adapter.trains_base or bound.stands_on:
            yield self.base_model
        else:
            with adapter.disabled(self.model):
                yield self.model

    def _turn(self, question: str) -> Message:
        """Return a question as a turn, in the words that the run's data set puts around it."""
        dataset = self.trained.dataset
        asked = dataset.ask(question) if dataset and self.whole else question
        return asked[-1] if isinstance(asked, tuple) else Message(role="user", content=question)

    def _prompt(self, messages: list[Message]) -> Prompt:
        if not self.whole:
            dataset, question = self.trained.dataset, messages[-1]["content"]
            return dataset.ask(question) if dataset else question
        first = [Message(role="system", content=self.system)] if self.system else []
        return (*first, *messages)

    def _answer(
        self,
        messages: list[Message],
        on_text: Callable[[str], None],
        stopping: Callable[[], bool],
        model: Any = None,
    ) -> str:
        from llmft.modeling.decoding import Stopped, decode, stop_ids

        model = self.model if model is None else model
        tokenizer = self.trained.base.tokenizer
        ids = self.trained.encoder.prompt_ids(self._prompt(messages))
        params = replace(self.params, max_new_tokens=self._room(len(ids)))
        stops = stop_ids(model, tokenizer)
        said = GrowingText(tokenizer)
        with suppress(Stopped):
            decode(
                model, [ids], replace(params, stop_token_ids=stops), batch_size=1,
                seed=(self.seed, self.answered), stopping=stopping,
                on_token=lambda _, token: on_text(said.add(token)),
            )  # fmt: skip
        on_text(said.end())
        return said.text

    def _room(self, prompt: int) -> int:
        """Return how many tokens the answer may have behind a prompt of so many."""
        positions = max_positions(self.trained.base.config)
        if positions is None:
            return self.params.max_new_tokens
        adapter = self.trained.bound.model_adapter
        room = positions - prompt - (adapter.virtual_tokens() if adapter else 0)
        if room < 1:
            raise DataError(
                "E106",
                f"the conversation has {prompt} tokens, and the model {positions} positions",
                fix="begin again with /reset, or ask something shorter",
            )
        return min(room, self.params.max_new_tokens)


def holds_conversations(trained: TrainedStage) -> bool:
    """Return whether a run was trained on conversations, and not on single questions or texts."""
    dataset = trained.dataset
    if dataset is None:
        return bool(getattr(trained.base.tokenizer, "chat_template", None))
    try:
        return dataset.row_kind() == "chat" or not isinstance(dataset.ask("?"), str)
    except DataError:  # a prompt template that no single question fills
        return False
