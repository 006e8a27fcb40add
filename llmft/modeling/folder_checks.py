"""What a model folder must not hold: code, pickles, odd files, and settings that cannot be."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmft.api.errors import CheckpointError, EnvironmentFault, TrustError
from llmft.system.fsio import is_of_another_size
from llmft.system.plain_files import kind_of, read_text

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_LARGEST = 64 * 2**20  # bytes of a JSON file that is read here; no published one comes near it
_TEXTS = (".json", ".jinja", ".txt", ".model")
_LONGEST = 512 * 2**20  # bytes of any file but the weights
_READ_HERE = ("config.json", "tokenizer_config.json", "generation_config.json")
# Sizes, by the names that architectures give them: whole numbers from 1, wherever they stand.
_SIZES = frozenset({
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "vocab_size", "max_position_embeddings", "head_dim", "n_layer", "n_head",
    "n_embd", "n_positions", "n_ctx", "n_inner", "d_model", "d_ff", "num_layers", "num_heads",
    "ffn_dim", "word_embed_proj_dim",
})  # fmt: skip
ADAPTER_CONFIG = "adapter_config.json"
# What an exported adapter may say otherwise: where its base is, and numbers that only scale.
_FREE = ("base_model_name_or_path", "revision", "lora_alpha", "peft_version")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][\w.+ -]{0,99}")
_MORE_TEMPLATES = "additional_chat_templates"  # a folder that transformers reads, too
_IDS = ("eos_token_id", "bos_token_id", "pad_token_id")


def check_folder(folder: Path) -> None:
    """Refuse a model folder that would run code, unpickle or hang when it is loaded, or is broken.

    Raises TrustError and EnvironmentFault, which name the file and what stands in it.
    """
    names = _names_of_plain_files(folder)
    if (folder / _MORE_TEMPLATES).is_dir():
        _names_of_plain_files(folder / _MORE_TEMPLATES)
    _refuse_pickles(folder, names)
    if ADAPTER_CONFIG in names:
        raise _adapter_there(folder, names)
    if "run.json" in names and "config.json" not in names:
        raise EnvironmentFault(
            "E201",
            f"'{folder}' is the folder of a run, not a model",
            fix=f"make one of it: llmft merge {shlex.quote(str(folder))} --output DIR",
        )
    for name in _READ_HERE:
        if name in names:
            check_settings(folder / name)


def check_adapter_folder(folder: Path, own: Mapping[str, Any]) -> None:
    """Refuse an adapter's folder that would run code, unpickle or hang, or is of another adapter.

    own: the settings in the adapter_config.json that it was made from. Patterns of module names,
    sizes and names of files and modules must be as they are there, as PEFT acts on them.
    Raises TrustError, EnvironmentFault, and CheckpointError (E407) with the settings that differ.
    """
    names = _names_of_plain_files(folder)
    if (folder / _MORE_TEMPLATES).is_dir():
        _names_of_plain_files(folder / _MORE_TEMPLATES)
    _refuse_pickles(folder, [name for name in names if name.startswith("adapter")])
    for name in ("tokenizer_config.json", ADAPTER_CONFIG):
        if name in names:
            check_settings(folder / name)
    told = json.loads(read_text(folder / ADAPTER_CONFIG, _LARGEST))
    other = sorted(
        key for key, value in told.items()
        if value != own.get(key) and key not in _FREE and not isinstance(value, bool | float)
    )  # fmt: skip
    if other:
        what = f"'{folder / ADAPTER_CONFIG}' has another {', '.join(other)[:200]} than the run's"
        raise CheckpointError("E407", what, fix="export the run again")


def _names_of_plain_files(folder: Path) -> list[str]:
    """Return the names in a folder; raise TrustError (E605) where one is no plain file."""
    names = []
    for path in sorted(folder.iterdir()):
        names.append(path.name)
        try:
            mode = path.stat().st_mode
        except OSError:  # a link to nothing; whoever needs it says so
            continue
        told = path.stat()
        if path.suffix in _TEXTS and stat.S_ISREG(told.st_mode) and told.st_size > _LONGEST:
            what = f"'{path}' has {told.st_size:,} bytes, which no such file has"
            raise EnvironmentFault("E201", what, fix="copy the model again")
        if not path.is_dir() and (kind := kind_of(mode)):
            what = f"'{path}' is {kind}, and a model's files are plain ones"
            raise TrustError("E605", what, fix="take it away, or copy the model again")
        large = path.suffix == ".safetensors" and told.st_size > _LONGEST
        if large and path.is_file() and os.access(path, os.R_OK) and is_of_another_size(path):
            what = f"'{path}' is damaged: it has {told.st_size:,} bytes, and its header tells of"
            raise EnvironmentFault("E201", f"{what} another size", fix="copy the model again")
    return names


def _adapter_there(folder: Path, names: list[str]) -> TrustError:
    """Return the error of a folder with an adapter in it, which transformers would load too."""
    if "config.json" in names:
        return TrustError(
            "E606",
            f"'{folder}' holds a model and an adapter (adapter_config.json), which would be loaded"
            " on top of it without a word",
            fix="move the files adapter_* into a folder of their own",
        )
    run = folder.absolute().parents
    of_a_run = folder.name == "adapter" and len(run) > 2 and run[1].name == "stages"
    start = f", and write start_from: run:{run[2].name}/{run[0].name} in the stage"
    return TrustError(
        "E606",
        f"'{folder}' is an adapter, not a model",
        fix=f"give its base model as model.path{start if of_a_run else ''}; or make a model of it:"
        " llmft merge RUN --output DIR",
    )


def _refuse_pickles(folder: Path, names: list[str]) -> None:
    weights = [name for name in names if name.endswith((".safetensors", *_PICKLES))]
    if weights and not any(name.endswith(".safetensors") for name in weights):
        kind = "an adapter as a pickle" if weights[0].startswith("adapter") else "pickled weights"
        raise TrustError(
            "E602",
            f"'{folder}' holds {kind} only ({weights[0]}), and a pickle can run any code",
            fix="convert them to safetensors on a machine you can lose",
        )


def check_settings(path: Path) -> None:
    """Refuse a JSON file of settings that asks for code, or holds what cannot be."""
    try:
        settings = json.loads(read_text(path, _LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        told = f": {error.strerror}" if isinstance(error, OSError) else ""
        raise EnvironmentFault("E201", f"'{path}' is not readable JSON{told}") from error
    if not isinstance(settings, dict):
        what = f"'{path}' holds {_shown(settings)}, and a JSON object is wanted"
        raise EnvironmentFault("E201", what, fix="copy the model again")
    if settings.get("auto_map"):
        raise TrustError(
            "E601",
            f"'{path}' asks for code of its own ('auto_map')",
            fix="use an architecture that transformers knows",
        )
    for name, template in _named_templates(settings.get("chat_template")):
        # transformers writes each into a file of that name, beside every adapter.
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            what = f"'{path}': a chat template is called {_shown(name)}, which names no file"
            raise EnvironmentFault("E201", what, fix="give the template another name, or delete it")
        if not isinstance(template, str):
            what = f"'{path}': the chat template {_shown(name)} is {_shown(template)}, no text"
            raise EnvironmentFault("E201", what, fix="correct the file, or delete the template")
    for key, value, wanted in _wrong(settings):
        what = f"'{path}': {key} is {_shown(value)}, and {wanted} is wanted"
        raise EnvironmentFault("E201", what, fix="copy the model again, or correct the file")


def _named_templates(found: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the names and the texts of chat templates, where there are several."""
    if isinstance(found, dict):
        yield from found.items()
    for one in found if isinstance(found, list) else []:
        one = one if isinstance(one, dict) else {}
        yield one.get("name"), one.get("template")


def _wrong(settings: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield each setting that cannot be, with its value and what is wanted."""
    for key, value in settings.items():
        if key in _SIZES and value is not None and not isinstance(value, list | dict):
            if type(value) is not int or value < 1:
                yield inside + key, value, "a whole number from 1"
        elif key in _IDS and value is not None:
            least = 0 if key == "eos_token_id" else -1  # some write -1 for none
            ids = value if isinstance(value, list) else [value]
            if not ids or any(type(one) is not int or one < least for one in ids):
                yield inside + key, value, "a token's number, or a list of such"
        elif isinstance(value, float) and not math.isfinite(value):
            yield inside + key, value, "a finite number"
        elif isinstance(value, dict) and key.endswith("config") and not inside:
            yield from _wrong(value, f"{key}.")


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
