"""Questions of the command line as prompts: in the form that the stage's data set gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llmft.api import Dataset, Message, Prompt
from llmft.api.errors import RecipeError


@dataclass(frozen=True)
class Asking:
    """How questions are put.

    system: a system text in place of the recipe's. turns: they are a person's turns in one
    conversation, each asked after the answers before it. raw: as they stand, with no prompt
    template around them.
    """

    system: str = ""
    turns: bool = False
    raw: bool = False

    def check(self) -> None:
        """Raise RecipeError (E090) where what is asked for cannot go together."""
        if self.raw and (self.system or self.turns):
            what = "--raw puts a question as it stands, without system text or other turns"
            raise RecipeError("E090", what, fix="leave out --raw, or --system and --turns")

    def prompt(self, dataset: Dataset[Any] | None, question: str) -> Prompt:
        """Return a question as a prompt.

        Raises RecipeError (E090) where the stage asks in plain text, and a system text or several
        turns are wanted; DataError where its prompt template cannot be filled by one question.
        """
        if self.raw or dataset is None:
            return self._spoken(question)
        return self._spoken(dataset.ask(question))

    def _spoken(self, asked: Prompt) -> Prompt:
        if not self.system and not self.turns:
            return asked
        if isinstance(asked, str):
            raise RecipeError(
                "E090",
                "this stage was trained on prompts of plain text, which have no "
                + ("system text" if self.system else "earlier turns"),
                fix="llmft chat RUN --chat talks through the chat template all the same",
            )
        if not self.system:
            return asked
        rest = asked[1:] if asked[0]["role"] in ("system", "developer") else asked
        return (Message(role="system", content=self.system), *rest)


AS_TRAINED = Asking()
"""In the form of the training rows."""


def in_turns(
    asking: Asking,
    dataset: Dataset[Any] | None,
    questions: Sequence[str],
    answer: Callable[[Prompt], str],
) -> list[str]:
    """Return the answers to the turns of one conversation. answer: gives that to a prompt."""
    said: list[Message] = []
    answers: list[str] = []
    for question in questions:
        asked = asking.prompt(dataset, question)
        assert not isinstance(asked, str)  # refused above
        answers.append(answer((*asked[:-1], *said, asked[-1])))
        said += [asked[-1], Message(role="assistant", content=answers[-1])]
    return answers
