"""`llmft export --to ollama`: a Modelfile whose template writes what the run was trained on.

Ollama's templates are Go's. Ours is derived from the chat template: conversations of marks are
rendered by it, and what stands around the marks is the template. It is then held against the chat
template on conversations and on the run's own prompts: the same token ids, or it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from llmft.api import Message, Prompt
from llmft.api.errors import LlmftError, RecipeError
from llmft.data.asking import prompt_of
from llmft.data.encoding import Encoder
from llmft.data.stage_rows import stage_rows
from llmft.exporting import go_template
from llmft.exporting.go_template import Frame
from llmft.inference.trained import TrainedStage
from llmft.modeling.decoding import stop_ids

_TALKS = (
    ("user",),
    ("user", "assistant", "user"),
    ("user", "assistant", "user", "assistant", "user"),
    ("system", "user"),
    ("system", "user", "assistant", "user"),
)
_FIX = "serve it with llama.cpp, which runs the chat template itself: --to gguf"
_ROWS = 64
_SPACED = " \n a mark \n "


@dataclass(frozen=True)
class Derived:
    """How Ollama is to ask. template: a Go template. notes: what a person should know."""

    template: str
    system: str = ""
    notes: tuple[str, ...] = ()


def derive(trained: TrainedStage, *, adds_bos: bool) -> Derived:
    """Return the template that has Ollama ask a run as it was trained.

    adds_bos: whether a BOS is put before the text that the template writes.
    Raises RecipeError (E090) where a Go template cannot write what the chat template does.
    """
    asked = _asked(trained)
    encoder = trained.encoder
    bos = trained.base.tokenizer.bos_token if adds_bos else ""
    if isinstance(asked, str):
        frame = Frame(_around(asked), only_last=True)
        found = Derived(
            go_template.write(frame),
            notes=("trained on single questions: Ollama puts the last one, in their form",),
        )
        _hold_questions(found, trained)
        return found
    frame = frame_of(encoder, bos)
    system = asked[0]["content"] if asked[0]["role"] == "system" else ""
    if '"""' in system or not all(char.isprintable() or char == "\n" for char in system):
        what = "a Modelfile cannot hold the run's system text: it drops what does not print"
        raise RecipeError("E090", what, fix=_FIX)
    found = Derived(go_template.write(frame), system, tuple(_notes(encoder, frame)))
    _hold(found, trained, bos, _conversations(frame))
    _hold(found, trained, bos, _prompts_of_rows(trained))
    return found


def modelfile(
    derived: Derived, gguf: str, stops: Sequence[str], settings: Mapping[str, Any]
) -> str:
    """Return a Modelfile. gguf: the file's name. settings: Ollama's parameters."""
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{derived.template}"""']
    if derived.system:
        lines.append(f'SYSTEM """{derived.system}"""')
    lines += [f"PARAMETER stop {_value(stop)}" for stop in stops]
    lines += [f"PARAMETER {name} {value}" for name, value in settings.items()]
    return "\n".join(lines) + "\n"


def hub_files(
    derived: Derived, stops: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, str]:
    """Return what Ollama reads beside a GGUF file of the hub, in place of a Modelfile, by name."""
    params = json.dumps({"stop": list(stops), **settings}, indent=2)
    files = {"template": derived.template, "params": f"{params}\n"}
    return files | ({"system": derived.system} if derived.system else {})


def stops_of(trained: TrainedStage) -> list[str]:
    """Return the texts at which Ollama is to stop: the tokens that end the run's answers."""
    base = trained.base
    tokenizer = base.tokenizer
    ends = {*base.answer_ends, *stop_ids(None, tokenizer)}
    found = [str(tokenizer.decode([end])) for end in sorted(ends)]
    # A Modelfile drops what does not print; the file's own end-of-text stops in any case.
    return [text for text in found if text and all(c.isprintable() or c == "\n" for c in text)]


def parameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return Ollama's parameters for a generation config; its own penalty is never meant."""
    found: dict[str, Any] = {"repeat_penalty": settings.get("repetition_penalty") or 1.0}
    if settings.get("do_sample"):
        for name in ("temperature", "top_k", "top_p", "min_p"):
            if settings.get(name) is not None:
                found[name] = settings[name]
    return found


def _asked(trained: TrainedStage) -> Prompt:
    """Return a mark as the run's data set asks it."""
    mark = _mark("user", 0)
    if trained.dataset is None:
        return mark
    try:
        return trained.dataset.ask(mark)
    except LlmftError as error:
        what = f"a question alone does not make a prompt of this run: {error.faults[0].what}"
        raise RecipeError("E090", what, fix=_FIX) from error


def _around(asked: str) -> dict[tuple[str | None, str | None], str]:
    before, mark, after = asked.partition(_mark("user", 0))
    if not mark:
        raise RecipeError("E090", "the run's prompt template changes the question", fix=_FIX)
    return {(None, "user"): before, ("user", None): after}


def frame_of(encoder: Encoder, bos: str) -> Frame:
    """Return what the chat template writes around messages; RecipeError where that is not fixed."""
    between: dict[tuple[str | None, str | None], str] = {}
    system = True
    for roles in _TALKS:
        talk = tuple(Message(role=role, content=_mark(role, n)) for n, role in enumerate(roles))
        try:
            text = encoder.render(talk, answer_next=True)
        except LlmftError as error:
            if roles[0] == "system":
                system = False
                continue
            what = f"the chat template refuses {' / '.join(roles)}: {error.faults[0].what}"
            raise RecipeError("E090", what, fix=_FIX) from error
        text = text.removeprefix(bos)
        before: str | None = None
        for message in talk:
            gap, mark, text = text.partition(message["content"])
            if not mark:
                raise _irregular(f"it moves or changes the {message['role']} text")
            _note(between, (before, message["role"]), gap)
            before = message["role"]
        _note(between, (before, None), text)
    return Frame(between, system)


def _note(
    between: dict[tuple[str | None, str | None], str], key: tuple[str | None, str | None], gap: str
) -> None:
    if "<mark-" in gap:
        raise _irregular("it writes a message twice, or in another order")
    if between.setdefault(key, gap) != gap:
        where = " and ".join(f"the {role} text" if role else "the end" for role in key)
        raise _irregular(
            f"between {where} it writes {between[key]!r} in one place and {gap!r} in another"
        )


def _irregular(why: str) -> RecipeError:
    return RecipeError("E090", f"a Go template cannot state this chat template: {why}", fix=_FIX)


def _mark(role: str, number: int) -> str:
    return f"<mark-{role}-{number}>"


def _notes(encoder: Encoder, frame: Frame) -> Iterator[str]:
    if not frame.system:
        yield "the chat template takes no system text, and Ollama leaves one out"
    spaced = (Message(role="user", content=_SPACED),)
    if _SPACED not in encoder.render(spaced, answer_next=True):
        yield (
            "the chat template strips the spaces and line breaks around a message, and Ollama keeps"
            " them"
        )
    yield "messages of one role that follow each other are joined by Ollama; tools are not stated"


def _conversations(frame: Frame) -> Iterator[Prompt]:
    texts = ("What is 2 + 2?", "It is 4.", 'Say {{ "hi" }}, please:\n- "one"\n- zwei äöü 漢字 🙂')
    for roles in _TALKS:
        if frame.system or roles[0] != "system":
            yield tuple(Message(role=role, content=texts[n % 3]) for n, role in enumerate(roles))


def _prompts_of_rows(trained: TrainedStage) -> Iterator[Prompt]:
    """Yield the run's own prompts that Ollama could be asked: texts of people, system and model."""
    dataset = trained.dataset
    if dataset is None:
        return
    train, held_out = stage_rows(
        trained.bound.spec, dataset, trained.job.recipe.seed, lambda: trained.encoder
    )
    rows = held_out.rows if held_out is not None and held_out.rows else train.rows
    for row in rows[:_ROWS]:
        prompt = prompt_of(row)
        if isinstance(prompt, str):
            continue
        plain = all(set(turn) <= {"role", "content"} for turn in prompt)
        roles = [turn["role"] for turn in prompt]
        follow = any(a == b for a, b in pairwise(roles))
        if plain and not follow and roles[-1] == "user" and {*roles} <= set(_TALKS[-1]):
            yield prompt


def _hold(derived: Derived, trained: TrainedStage, bos: str, prompts: Iterator[Prompt]) -> None:
    """Raise RecipeError where the template gives other token ids than the run's own."""
    tokenizer, encoder = trained.base.tokenizer, trained.encoder
    for prompt in prompts:
        assert not isinstance(prompt, str)
        text = bos + go_template.run(derived.template, prompt)
        try:
            wanted = encoder.prompt_ids(prompt)
        except LlmftError:  # of earlier answers that nothing ends; Ollama can be asked so
            written = encoder.render(prompt, answer_next=True)
            wanted = tokenizer(written, add_special_tokens=False)["input_ids"]
        if tokenizer(text, add_special_tokens=False)["input_ids"] != wanted:
            said = json.dumps(prompt[-1]["content"][:60])
            raise _irregular(f"it gives other tokens for a conversation that ends with {said}")


def _hold_questions(derived: Derived, trained: TrainedStage) -> None:
    dataset, encoder = trained.dataset, trained.encoder
    for question in ("What is 2 + 2?", 'Say {{ "hi" }}:\n"zwei" äöü 漢字 🙂'):
        asked = dataset.ask(question) if dataset is not None else question
        text = go_template.run(derived.template, [{"role": "user", "content": question}])
        if encoder.prompt_ids(text) != encoder.prompt_ids(asked):
            raise RecipeError("E090", "the run's prompt template changes the question", fix=_FIX)


def _value(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'
