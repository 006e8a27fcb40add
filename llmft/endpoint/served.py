"""Finished runs that are answered with, by their names; runs of one base hold it once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llmft.api import Message, Prompt
from llmft.api.errors import DataError, LlmftError, RecipeError
from llmft.inference.chatting import holds_conversations
from llmft.inference.trained import TrainedStage, trained_stage
from llmft.modeling.base_model import max_positions
from llmft.runs.upstream import load_options, merged_stages

BASE = "base"
"""The name under which the untrained model answers."""
_LONGEST = 4096  # tokens of a text, where the model sets no limit
_QUESTION = "QUESTION"


@dataclass(frozen=True)
class Served:
    """A model that is answered with.

    whole: whether messages go through the chat template as they stand; False: a single question is
    asked, in the form that the run's data set gives it.
    """

    name: str
    trained: TrainedStage
    model: Any
    whole: bool

    @property
    def tokenizer(self) -> Any:
        """The run's tokenizer."""
        return self.trained.base.tokenizer

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        return self.trained.base.vocabulary or len(self.tokenizer)

    @property
    def positions(self) -> int:
        """How many tokens a prompt and its answer may have together."""
        adapter = self.trained.bound.model_adapter
        virtual = adapter.virtual_tokens() if adapter else 0
        return (max_positions(self.trained.base.config) or _LONGEST) - virtual

    def word(self, token: int) -> str:
        """Return a token as it stands within a text: with the space before it, if it has one."""
        before = self._before
        text: str = self.tokenizer.decode([*before, token])
        return text.removeprefix(self.tokenizer.decode(before))

    @cached_property
    def _before(self) -> list[int]:
        return self.text_ids(".")[-1:]

    def text_ids(self, text: str) -> list[int]:
        """Return a text's ids, as in training."""
        return self.trained.encoder.prompt_ids(text)

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation that is to be answered, as in training.

        Raises an LlmftError where this run cannot be asked so, or its template refuses them.
        """
        return self.trained.encoder.prompt_ids(self._prompt(messages))

    def _prompt(self, messages: Sequence[Message]) -> Prompt:
        if self.whole:
            return tuple(messages)
        if [message["role"] for message in messages] != ["user"]:
            raise RecipeError(
                "E090",
                f"'{self.name}' was trained on single questions: one message of a user is taken",
                fix="start 'llmft serve' with --chat to use the chat template, or ask"
                " /v1/completions",
            )
        dataset, question = self.trained.dataset, messages[0]["content"]
        return dataset.ask(question) if dataset else question

    @property
    def remark(self) -> str:
        """Return what a person should know of how this run is asked; '' where nothing."""
        if not self.whole:
            return "trained on single questions; a user's one message is asked in their form"
        dataset = self.trained.dataset
        try:
            asked = dataset.ask(_QUESTION) if dataset else None
        except DataError:  # a prompt template that no single question fills
            asked = None
        if asked in (None, (Message(role="user", content=_QUESTION),)):
            return ""
        return (
            "training put a system text or other words around a question; messages are taken as"
            " they stand, so send them too"
        )


@dataclass(frozen=True)
class Asked:
    """A run to be answered with. name: as clients call it."""

    name: str
    run: Path


def asked_runs(words: Sequence[str]) -> list[Asked]:
    """Return the runs that `RUN` or `NAME=RUN` name, with a name for each.

    The default is the recipe's name, with the folder's where several runs have the same.
    Raises RecipeError (E090) where a name is taken twice or cannot be one.
    """
    given: list[tuple[str | None, Path]] = []
    for word in words:
        before, sign, rest = word.partition("=")
        plain = not sign or Path(word).is_dir()
        given.append((None, Path(word)) if plain else (before, Path(rest)))
    recipes = [_recipe_name(run) if name is None else "" for name, run in given]
    found = []
    for (name, run), recipe in zip(given, recipes, strict=True):
        alone = recipe if recipes.count(recipe) == 1 else f"{recipe}/{run.resolve().name}"
        found.append(Asked(alone if name is None else name, run))
    names = [model.name for model in found]
    for one in names:
        if names.count(one) > 1 or one == BASE or not one.isprintable() or not one:
            what = f"'{one}' cannot be the name of a model: it is empty, taken, or not printable"
            raise RecipeError("E090", what, fix="name each run: llmft serve first=RUN second=RUN")
    return found


def load(
    asked: Sequence[Asked], stage: str | None = None, *, chat: bool = False, base: bool = False
) -> list[Served]:
    """Return the models, loaded; runs of one base hold it once.

    chat: use the chat template also where training used none. base: the untrained base of the first
    run answers too, under the name `base`.
    Each run's files are checked against their manifest, and its base against its lock, before a
    weight is loaded. Raises as `trained_stage` does.
    """
    bases: dict[str, Any] = {}
    found = []
    for one in asked:
        trained = trained_stage(
            one.run, stage, fix="a reward model scores texts: llmft score RUN FILE"
        )
        if chat and not getattr(trained.base.tokenizer, "chat_template", None):
            what = f"the tokenizer of '{one.run}' has no chat template, which --chat needs"
            raise DataError("E108", what, fix="set model.chat_template in the recipe")
        whole = chat or holds_conversations(trained)
        found.append(Served(one.name, trained, _model(trained, bases), whole))
        if base and len(found) == 1:
            model = _model(trained, bases, with_adapter=False)
            found.append(Served(BASE, trained, model, whole))
    for served in found:  # what they need beside them is started before there are threads
        served.text_ids(_QUESTION)
        with suppress(LlmftError):
            served.chat_ids([Message(role="user", content=_QUESTION)])
    return found


def _model(trained: TrainedStage, bases: dict[str, Any], *, with_adapter: bool = True) -> Any:
    """Return a stage's model on a base that others of the same weights use, where that can be.

    What trains or is merged into the base's weights has a base of its own.
    """
    adapter, bound = trained.bound.model_adapter, trained.bound
    changes = adapter is None or adapter.trains_base or merged_stages(bound, trained.run)
    if changes and with_adapter:
        return trained.model()
    source = trained.base.source
    options = load_options(trained.job.recipe, adapter)
    key = json.dumps(
        [trained.base.path, trained.base.revision, source.dtype, source.attn_implementation,
         list(source.stop), source.rope_scaling,
         [str(token) for token in trained.base.new_tokens], options],
        default=str,
    )  # fmt: skip
    if key not in bases:
        bases[key] = trained.model(with_adapter=False)
    return trained.model(with_adapter=with_adapter, on=bases[key])


def _recipe_name(run: Path) -> str:
    """Return the name of a run's recipe; that of its folder where it cannot be read."""
    from llmft.runs import artifacts
    from llmft.system import fsio

    try:
        name = fsio.read_json(run / artifacts.RUN, artifacts.PUT_BACK).get("name")
    except (LlmftError, AttributeError):
        name = None
    return name if isinstance(name, str) and name else run.resolve().name
