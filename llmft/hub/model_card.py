"""The model card of an adapter: what it was made from, how well it does, and how to load it.

A card may become public. It holds names, never a path of this machine, and nothing that looks like
a key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from llmft.api.model_settings import RopeScaling
from llmft.api.shown_text import escaped
from llmft.api.text_metrics import shown_score
from llmft.modeling.base_model import EMBEDDED
from llmft.recipes.other_models import models_of
from llmft.recipes.recipe import Recipe, Stage
from llmft.recipes.secret import masked
from llmft.runs.artifacts import PUT_BACK
from llmft.runs.run_folder import as_yaml
from llmft.system.fsio import as_a_run_wrote

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PRIVATE = ("output_dir", "trackers", "push_to_hub")

CARD = """---
{front}
---

# {title}

{what} the base model {base}, trained by `{alignment}` in the
stage `{stage}` of a recipe of [llmft](https://pypi.org/project/llmft/) {llmft}.

## Scores

{scores}

## Data

{data}

## How to load it

{loading}

## Recipe

Every setting, defaults written out; names of files without their folders.

```yaml
{recipe}```

## Versions

{versions}

## Licence

Unknown: nobody has stated one. The licences of the base model and of the data may bind what is
done with {these}.
"""


MERGED = """---
{front}
---

# {title}

A whole model: an adapter of the method `{adapter}`, trained by `{alignment}` in the stage `{stage}`
of a recipe of [llmft](https://pypi.org/project/llmft/) {llmft}, merged into its base model {base}.
Weights in {dtype}.

## Scores

Measured with the adapter beside its base, before it was merged.

{scores}

## What merging changed

{error}

## Data

{data}

## How to load it

{load}

## Recipe

Every setting, defaults written out; names of files without their folders.

```yaml
{recipe}```

## Versions

{versions}

## Licence

Unknown: nobody has stated one. The licences of the base model and of the data may bind what is
done with this model.
"""

_BY_TRANSFORMERS = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {where}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
```"""
_BY_LLAMA_CPP = """```bash
{commands}
```"""


@dataclass(frozen=True)
class Place:
    """Where an adapter is: in a repository of the hub, or in the folder of a run (its id)."""

    repo_id: str = ""
    run: str = ""


def is_hub_id(path: str) -> bool:
    """Return whether a model's path in a recipe means a repository of the hub."""
    return bool(HUB_ID.fullmatch(path)) and not Path(path).expanduser().exists()


def public_base(path: str) -> str:
    """Return the name of a base model that may be shown: a hub id, or a folder's bare name."""
    if path.startswith(EMBEDDED):
        return "llmft-embedded-model"
    return path if is_hub_id(path) else _bare(str(Path(path).expanduser().resolve()))


def shareable(value: Any) -> Any:
    """Return plain data with every path of this machine cut to its last name."""
    if isinstance(value, Mapping):
        return {shareable(key): shareable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shareable(item) for item in value]
    if not isinstance(value, str):
        return value
    text = value.replace(str(Path.cwd()) + "/", "").replace(str(Path.home()) + "/", "")
    is_path = text.startswith(("~", "file:")) or _is_absolute(text)
    return _bare(text) if is_path else text


def without_secrets(text: str) -> str:
    """Return text with all that looks like a key struck out; a checked recipe holds none."""
    return "\n".join(masked(line) for line in text.split("\n"))


def _is_absolute(text: str) -> bool:
    posix, windows = PurePosixPath(text), PureWindowsPath(text)
    return "\n" not in text and (posix.is_absolute() or windows.is_absolute())


def _bare(path: str) -> str:
    return PureWindowsPath(path).name or "folder"


def card(
    recipe: Recipe,
    stage: Stage,
    adapter: str,
    result: Mapping[str, Any],
    lock: Mapping[str, Any],
    place: Place,
    *,
    loads_in_peft: bool,
    is_model: bool = False,
    stands_on: Sequence[str] = (),
    mergeable: bool = True,
) -> str:
    """Return the README.md of a stage's adapter.

    is_model: it is no adapter, but a whole model, as transformers saves one. stands_on: the stages
    that are merged into the base under the adapter. mergeable: whether it can be merged itself.

    result, lock: the run's result.json and lock.json. adapter: the adapter's method. place: where
    the card will be read.
    loads_in_peft: whether the files are an adapter as PEFT saves one.
    """
    base = public_base(recipe.model.path)
    known = is_hub_id(recipe.model.path)
    front = {
        **({"base_model": base} if known else {}),
        "library_name": "transformers" if is_model else "peft" if loads_in_peft else "llmft",
        "license": "unknown",
        "tags": ["llmft", adapter, stage.work.method],
    }
    shown = {name: value for name, value in recipe.resolved().items() if name not in _PRIVATE}
    text = CARD.format(
        front="\n".join(f"{name}: {json.dumps(value)}" for name, value in front.items()),
        title=f"{recipe.name}: {stage.name}",
        what=f"A model made with the method `{adapter}` of"
        if is_model
        else f"An adapter of the method `{adapter}` for",
        these="these weights" if is_model else "this adapter",
        base=f"[{base}](https://huggingface.co/{base})" if known else f"`{base}`",
        alignment=stage.work.method,
        stage=stage.name,
        llmft=lock.get("llmft", "of an unknown version"),
        scores=_scores(stage, result),
        data=_data(stage, lock),
        loading=_loading_model(stage, result, place)
        if is_model
        else _loading_stacked(stage, base, stands_on, place, mergeable)
        if stands_on
        else _loading(recipe, stage, result, base, place, loads_in_peft),
        recipe=as_yaml(shareable(shown)),
        versions=_table(("package", "version"), list(lock.get("packages", {}).items())),
    )
    return escaped(without_secrets(text))


def merged_card(
    recipe: Recipe,
    stage: Stage,
    adapter: str,
    result: Mapping[str, Any],
    lock: Mapping[str, Any],
    *,
    dtype: str,
    error: str,
    gguf: Sequence[str] = (),
    repo_id: str = "",
) -> str:
    """Return the README.md of a merged model.

    result, lock: the run's result.json and lock.json. adapter: the adapter's method. dtype: of the
    weights. error: how far the merged model's answers are from the run's. gguf: the commands that
    load it, where it is a GGUF file. repo_id: where on the hub it is, if it is there.
    """
    base = public_base(recipe.model.path)
    known = is_hub_id(recipe.model.path)
    front = {
        **({"base_model": base} if known else {}),
        "library_name": "gguf" if gguf else "transformers",
        "pipeline_tag": "text-generation",
        "license": "unknown",
        "tags": ["llmft", adapter, stage.work.method],
    }
    shown = {name: value for name, value in recipe.resolved().items() if name not in _PRIVATE}
    text = MERGED.format(
        front="\n".join(f"{name}: {json.dumps(value)}" for name, value in front.items()),
        title=f"{recipe.name}: {stage.name}, merged",
        adapter=adapter,
        base=f"[{base}](https://huggingface.co/{base})" if known else f"`{base}`",
        alignment=stage.work.method,
        stage=stage.name,
        llmft=lock.get("llmft", "of an unknown version"),
        dtype=dtype,
        scores=_scores(stage, result),
        error=error,
        data=_data(stage, lock),
        load=_BY_LLAMA_CPP.format(commands="\n".join(gguf))
        if gguf
        else _BY_TRANSFORMERS.format(
            where=f'"{repo_id}"' if repo_id else '"."  # this folder, or its repository on the hub'
        ),
        recipe=as_yaml(shareable(shown)),
        versions=_table(("package", "version"), list(lock.get("packages", {}).items())),
    )
    return escaped(without_secrets(text))


def _scores(stage: Stage, result: Mapping[str, Any]) -> str:
    """Return the scores as a table. Raises CheckpointError where a run did not write them so."""
    with as_a_run_wrote(Path("stages", stage.name), PUT_BACK):
        return _read_scores(stage, result)


def _read_scores(stage: Stage, result: Mapping[str, Any]) -> str:
    before, after = result.get("before", {}), result.get("after", {})
    trained = ""
    if result.get("steps"):
        loss = _number(result.get("metrics", {}).get("train_loss"))
        trained = f"Trained for {result['steps']:,} steps; mean training loss {loss}."
    if not after:
        return f"{trained} It was not evaluated.".strip()
    asked = stage.evaluate
    rows = "held-out rows of the training split" if asked and asked.holdout else "held-out rows"
    told = result.get("scores") or {}
    scores = [
        (name, *(_score(told.get(when, {}).get(name), alone) for when, alone in
                 (("before", before.get(name)), ("after", value), ("difference", None))))
        for name, value in after.items()
    ]  # fmt: skip
    table = _table(("metric", "before", "after", "difference"), scores)
    said = "with 95 % intervals over n rows; the difference is of the same rows"
    return f"On {rows}, before and after training, {said}:\n\n{table}\n\n{trained}".strip()


def _score(score: Mapping[str, Any] | None, alone: Any) -> str:
    return shown_score(score, 4) if score else _number(alone)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "-"


def _data(stage: Stage, lock: Mapping[str, Any]) -> str:
    block = stage.data.model_dump(mode="json") if stage.data else {}
    told = {k: v for k, v in shareable(block).items() if v is not None}
    hashes = lock.get("rows_sha256", {}).get(stage.name) or {}
    rows = [(name, f"`{value}`") for name, value in told.items()]
    rows += [(str(key[-1]), f"`{shareable(other.path)}`") for key, other in models_of(stage)]
    rows += [(f"SHA-256 of the rows, {name}", f"`{value}`") for name, value in hashes.items()]
    return _table(("setting", "value"), rows)


def _loading(
    recipe: Recipe,
    stage: Stage,
    result: Mapping[str, Any],
    base: str,
    place: Place,
    loads_in_peft: bool,
) -> str:
    """Return how the adapter is loaded: by llmft from the run's folder, and by PEFT where possible.

    A repository of the hub holds no run folder, so there PEFT is named alone.
    """
    made = result.get("produces")
    scores = made in ("reward_model", "classifier")
    run = "RUN"  # a folder of this machine is named only as it is typed in any project
    if place.run and not _is_absolute(recipe.output_dir):
        run = f"{recipe.output_dir}/{recipe.name}/{place.run}"
    what = f"score {run} texts.jsonl" if scores else f'generate {run} "your question"'
    by_llmft = f"`llmft {what} --stage {stage.name}`"
    if not loads_in_peft:
        why = "its head lies beside it" if scores else "it does not know this method"
        return f"Plain PEFT does not load it: {why}. llmft does, from the run's folder: {by_llmft}."
    text = ""
    if place.run:
        named = f" (RUN is the folder of the run {place.run})" if run == "RUN" else ""
        text = f"llmft, from the run's folder{named}: {by_llmft}.\n\nPlain PEFT:\n\n"
    revision = f', revision="{recipe.model.revision}"' if recipe.model.revision else ""
    where, first = json.dumps(base), ""
    if recipe.model.path.startswith(EMBEDDED):
        where = 'Path(llmft.__file__).parent / "assets" / "model"'
        first = "from pathlib import Path\n\nimport llmft\n"
    elif not is_hub_id(recipe.model.path):
        text += f"Put the path of your copy of `{base}` in its place.\n\n"
    bits = recipe.model.quantization.bits
    text += f"The base was held in {bits} bits while this was trained.\n\n" if bits else ""
    kind, labels, use = "AutoModelForCausalLM", "", ""
    adapter = place.repo_id or f"{run}/stages/{stage.name}/adapter"
    config = ""
    if made == "classifier":
        kind, labels = "AutoModelForSequenceClassification", ", config=config"
        config = f'config = AutoConfig.from_pretrained("{adapter}")\n'
        text += "It is a classifier: its head reads the state of a text's last token, so pad with"
        text += " the token that its config names.\n\n"
        use = (
            "\ntokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)"
            '\nlogits = model(**tokenizer("...", return_tensors="pt")).logits'
            "\nlabel = config.id2label[int(logits.argmax())]"
        )
    elif scores:
        kind, labels = "AutoModelForSequenceClassification", ", num_labels=1"
        first += "import torch\n"
        text += "It is a reward model: its one label's logit, at a text's last token, is the"
        text += " reward. Every text, prompt and answer in one, was trained with an end-of-text"
        text += " token behind it, and has another score without. A conversation is written by the"
        text += " chat template instead. To score several texts at a time, pad with a token that"
        text += " ends none.\n\n"
        use = (
            "\nmodel.config.pad_token_id = None  # a last token that also pads would be passed over"
            '\nids, end = tokenizer("...").input_ids, [tokenizer.eos_token_id]'
            "\nids = ids if ids[-1:] == end else ids + end"
            "\nreward = model(torch.tensor([ids])).logits[0, 0]"
        )
    files, rows = f"base{revision}", ""
    if count := len(recipe.model.add_tokens) + len(recipe.model.add_special_tokens):
        text += f"{count} tokens were added to the tokenizer, which lies beside the adapter.\n\n"
        files = f'"{adapter}"'
        rows = (
            "rows = max(len(tokenizer), model.get_input_embeddings().num_embeddings)\n"
            "model.resize_token_embeddings(rows, mean_resizing=False)\n"
        )
    if (rope := recipe.model.rope_scaling) and not config:  # a classifier's config says it
        text += "The base's positions are stretched, for longer rows.\n\n"
        config = _stretched(rope, revision) + ("config.num_labels = 1\n" if scores else "")
        labels = ", config=config"
    classes = f"{'AutoConfig, ' if config else ''}{kind}, AutoTokenizer"
    return (
        f"{text}```python\n{first}from peft import PeftModel\n"
        f"from transformers import {classes}\n\n"
        f"base = {where}\n{config}"
        f"tokenizer = AutoTokenizer.from_pretrained({files})\n"
        f"model = {kind}.from_pretrained(base{revision}{labels})\n{rows}"
        f'model = PeftModel.from_pretrained(model, "{adapter}").eval(){use}\n```'
    )


def _stretched(rope: RopeScaling, revision: str) -> str:
    """Return the lines that do to a base's config what `model.rope_scaling` does."""
    given = rope.model_dump(exclude_none=True)
    original = given.pop("original_max_position_embeddings", "text.max_position_embeddings")
    made = [f'"{name}": {value!r}'.replace("'", '"') for name, value in given.items()]
    if rope.rope_type != "linear":
        made.append('"original_max_position_embeddings": longest')
    return (
        f"config = AutoConfig.from_pretrained(base{revision})\n"
        f"text = config.get_text_config()\nlongest = {original}\n"
        'kept = ("rope_theta", "partial_rotary_factor")\n'
        "rope = {name: value for name, value in text.rope_parameters.items() if name in kept}\n"
        f"text.rope_parameters = {{**rope, {', '.join(made)}}}\n"
        "longest = max(text.max_position_embeddings, int(longest * "
        f"{rope.factor}))\ntext.max_position_embeddings = longest\n"
    )


def _loading_stacked(
    stage: Stage, base: str, stands_on: Sequence[str], place: Place, mergeable: bool
) -> str:
    """Return how an adapter is loaded that does not stand on the base alone."""
    below = ", then ".join(f"`{name}`" for name in stands_on)
    told = f"RUN is the folder of the run {place.run}. " if place.run else ""
    text = (
        f"{told}The adapter stands on `{base}` with what the run's stages made merged into it:"
        f" {below}. On the base alone it answers otherwise. llmft puts them together from the run's"
        f' folder: `llmft generate RUN "your question" --stage {stage.name}`'
    )
    if mergeable:
        text += f"; as one model for other programs: `llmft merge RUN --stage {stage.name}"
        text += " --output DIR`"
    return f"{text}."


def _loading_model(stage: Stage, result: Mapping[str, Any], place: Place) -> str:
    """Return how a whole model is loaded, by plain transformers."""
    where = place.repo_id or f"RUN/stages/{stage.name}/adapter"
    told = f"RUN is the folder of the run {place.run}. " if place.run else ""
    if result.get("produces") == "reward_model":
        return (
            f"{told}It is a reward model: its head is in `head.safetensors`, and reads the state"
            f" of a text's last token. `llmft score RUN texts.jsonl --stage {stage.name}`"
        )
    classifies = result.get("produces") == "classifier"
    kind = f"AutoModelFor{'SequenceClassification' if classifies else 'CausalLM'}"
    return (
        f"{told}Plain transformers:\n\n```python\n"
        f"from transformers import {kind}, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{where}")\n'
        f'model = {kind}.from_pretrained("{where}")\n```'
    )


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
