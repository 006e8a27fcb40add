"""`llmft new FILE --model MODEL --data DATA`: from a file of rows to a recipe that runs."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft.api.errors import DataError, RecipeError
from llmft.api.model_settings import ModelSource
from llmft.api.shown_text import on_one_line
from llmft.cli.commands.new_text import Sizes, Wish, recipe_text
from llmft.cli.commands.output import prose
from llmft.data.forms import Form, Goal, forms_of
from llmft.data.tables import Unreadable, read_records
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.system import fsio
from llmft.system.nearest import did_you_mean
from llmft.system.quiet import before_upstream, captured_output

if TYPE_CHECKING:
    from llmft.data.preview import StagePreview

LOOKED_AT = 200
"""Records of a file that tell its form."""
_NEARLY_ALL = 0.9  # of the records: others, that lack what these have, are bad rows
_EMPTY: tuple[Any, ...] = (None, "", [])
_LONGEST = 2048  # tokens of a row, where the model could take more


@dataclass(frozen=True)
class Asked:
    """What the command line says; '' where it leaves the choice."""

    model: str
    data: str
    goal: str = ""
    form: str = ""
    adapter: str = "lora"


@dataclass(frozen=True)
class Made:
    """A recipe that was written, and what it rests on."""

    path: Path
    text: str
    wish: Wish
    sizes: Sizes
    previews: Sequence[StagePreview]


def new(path: Path, asked: Asked) -> Made:
    """Write a recipe that passes `validate --model`, and return it with a preview of its rows.

    Raises RecipeError (E090) where a flag has to decide, or the file is there already; DataError
    (E101) where the rows have no known form; and as `validate` does.
    """
    if path.suffix not in (".yaml", ".yml") or on_one_line(str(path)) != str(path):
        raise RecipeError("E090", f"'{path}' is no recipe's name", fix="write a name.yaml")
    fsio.refuse_overwriting(path)
    records = _usual(asked.data)
    form, goal = _chosen(forms_of(records), asked)
    registry = Registry.discover()
    known = sorted(row.method for row in registry.records() if row.kind == "adapter")
    if asked.adapter not in known:
        what = f"--adapter is '{asked.adapter}'; there is {', '.join(known)}"
        raise RecipeError(
            "E090", what, fix=did_you_mean(asked.adapter, known) or "use one of these"
        )
    before_upstream()
    with captured_output(Path(os.devnull)):  # upstream's chatter is no part of the answer
        from llmft.modeling.base_model import BaseModel

        base = BaseModel(ModelSource(path=asked.model))
        has_template = bool(base.tokenizer.chat_template)
        wish = Wish(_name(path), asked.model, asked.data, form, goal, asked.adapter, has_template)
        wish, sizes, previews = _sized(wish, base.positions, path, registry)
    text = recipe_text(wish, sizes, str(path))
    _refuse_faults(text)
    fsio.write_text(path, text)
    return Made(path, text, wish, sizes, previews)


def _usual(path: str) -> list[Mapping[str, Any]]:
    """Return the first records that can be read, with something in the columns as nearly all."""
    found = list(islice(read_records(path, "train", keep_unreadable=True), LOOKED_AT))
    read = [record for _, record in found if not isinstance(record, Unreadable)]
    if not read:
        if found and isinstance(found[0][1], Unreadable):
            raise found[0][1].error
        raise DataError("E105", f"'{path}' has no rows")
    filled = [{name for name, value in record.items() if value not in _EMPTY} for record in read]
    counts = Counter(chain.from_iterable(filled))
    usual = {column for column, count in counts.items() if count >= _NEARLY_ALL * len(read)}
    return [record for record, names in zip(read, filled, strict=True) if usual <= names] or read


def _name(path: Path) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", path.stem).strip("._-")
    return plain or "recipe"


def _chosen(forms: Sequence[Form], asked: Asked) -> tuple[Form, Goal]:
    """Return the form and the goal; ask where there are two, on a terminal."""
    if asked.goal:
        fitting = [form for form in forms if asked.goal in form.goals]
        if not fitting:
            said = "; ".join(f"{form.said} teach {' or '.join(form.goals)}" for form in forms)
            raise RecipeError(
                "E090",
                f"--goal {asked.goal} needs other rows than these: {said}",
                fix="leave --goal out, or give other data (docs/data.md)",
            )
        forms = fitting
    names = [form.name for form in forms]
    form = forms[names.index(_choice("--form", asked.form, names, [f.said for f in forms]))]
    goals = [goal for goal in form.goals if asked.goal in ("", goal)]
    why = {"preferences": "DPO on the pairs", "reward": "a reward model", "sft": "answers",
           "rlhf": "SFT, a reward model and PPO, in one recipe",
           "classification": "a classifier of texts"}  # fmt: skip
    goal = goals[goals.index(_choice("--goal", asked.goal, goals, [why[g] for g in goals]))]  # type: ignore[arg-type]
    return form, goal


def _choice(flag: str, given: str, names: Sequence[str], said: Sequence[str]) -> str:
    """Return one of the names: the given one, the only one, or what the person chooses."""
    if given:
        if given not in names:
            what = f"{flag} is '{given}'; these rows can be read as {', '.join(names)}"
            raise RecipeError("E090", what, fix=did_you_mean(given, names) or "use one of these")
        return given
    if len(names) == 1:
        return names[0]
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        read = "; ".join(f"{name}: {what}" for name, what in zip(names, said, strict=True))
        fix = f"write {' or '.join(f'{flag} {name}' for name in names)}"
        raise RecipeError("E090", f"the rows can be meant in {len(names)} ways: {read}", fix=fix)
    import typer

    for number, (name, what) in enumerate(zip(names, said, strict=True), 1):
        typer.echo(f"  {number}. {name}: {what}", err=True)
    told = 0
    while not 1 <= told <= len(names):
        told = typer.prompt(f"Which is meant? (1 to {len(names)})", type=int, err=True)
    return names[told - 1]


def _sized(
    wish: Wish, positions: int | None, path: Path, registry: Registry
) -> tuple[Wish, Sizes, list[StagePreview]]:
    """Return the sizes that fit this machine, and a preview of each stage with them.

    The wish comes back with bad rows skipped where there are some beside those that can be used.
    """
    import torch

    try:
        found = _previews(recipe_text(wish, Sizes(rows=1), str(path)), registry)
    except DataError as error:
        if error.faults[0].code not in ("E101", "E107", "E108"):
            raise
        wish = replace(wish, skip=True)
        try:
            found = _previews(recipe_text(wish, Sizes(rows=1), str(path)), registry)
        except DataError:  # none is left, or too few: what is wrong with them says more
            raise error from None
    read = max(found, key=lambda stage: stage.read)
    sizes = Sizes(read.read, skipped=read.skipped, gpu=torch.cuda.is_available())
    longest = max((stage.lengths.get("most", 0) for stage in found), default=0)
    room = min(positions or _LONGEST, _LONGEST)
    most = min(-(-longest // 64) * 64, room) or None
    cut = found[0].cut if longest >= room else 0
    sizes = replace(sizes, longest=longest, cut=cut, room=room, max_length=most)
    few = max(sizes.usable // 10, 1)  # at least ten steps an epoch
    while sizes.batch > few:
        sizes = replace(sizes, batch=sizes.batch // 2)
    while not _fits(recipe_text(wish, sizes, str(path))):
        smaller = sizes.smaller()
        if smaller is None:
            sizes = replace(sizes, fits=False)
            break
        sizes = smaller
    return wish, sizes, _previews(recipe_text(wish, sizes, str(path)), registry)


def _written(text: str, folder: str) -> Path:
    place = Path(folder, "recipe.yaml")
    place.write_text(text, "utf-8")
    return place


def _previews(text: str, registry: Registry) -> list[StagePreview]:
    from llmft.engine.preview import preview_job
    from llmft.modeling.base_model import BaseModel

    with tempfile.TemporaryDirectory() as scratch:
        job = load_recipe(_written(text, scratch), registry)
        return preview_job(job, BaseModel(job.recipe.model), picks=1, only=("first",))


def _fits(text: str) -> bool:
    from llmft.cli.commands.plan import plan

    with tempfile.TemporaryDirectory() as scratch:
        return plan(str(_written(text, scratch)), (), None).fits is not False


def _refuse_faults(text: str) -> None:
    from llmft.cli.commands.validate import check

    with tempfile.TemporaryDirectory() as scratch:
        check([str(_written(text, scratch))], (), model=True)


def as_json(made: Made) -> dict[str, Any]:
    """Return what was made as plain data."""
    from llmft.cli.commands.preview import as_json as preview_json

    return {
        "recipe": str(made.path),
        "form": made.wish.form.name,
        "said": made.wish.form.said,
        "goal": made.wish.goal,
        "unread": list(made.wish.form.unread),
        "fits": made.sizes.fits,
        "text": made.text,
        **preview_json(made.wish.name, made.previews),
    }


def as_text(made: Made) -> str:
    """Return what was seen, the first row as it will be trained on, and what to type next."""
    from llmft.cli.commands.preview import as_text as preview_text

    wish, sizes = made.wish, made.sizes
    template = "has a chat template" if wish.template else "has no chat template"
    seen = [f"{wish.data}: {wish.form.said}; {sizes.rows:,} rows", f"{wish.model} {template}"]
    if wish.form.unread:
        seen.append(f"not read: {', '.join(map(on_one_line, wish.form.unread))}")
    if sizes.cut:
        seen.append(f"cut: {sizes.cut:,} of {sizes.rows:,} rows, after {sizes.max_length} tokens")
    if not sizes.fits:
        seen.append("the smallest batch does not fit this machine's memory: see llmft plan")
    after = f"written: {made.path}\nnext: llmft run {shlex.quote(str(made.path))}"
    return "\n\n".join([prose("\n".join(seen)), preview_text(made.previews, None), prose(after)])
