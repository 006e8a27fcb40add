"""Heads: a classifier's or reward model's, read at a text's last token, and a value head.

A stage that produces a `reward_model` adds the first with one output, so that every other may ask
for rewards. The value head, read at each token, has a name and a file of its own: one cannot be
taken for the other.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from llmft.api import Encoded
from llmft.modeling.forward import last_hidden

NAME = "score"  # as in transformers' sequence classifiers
FILE = "head.safetensors"
JOINED = frozenset({"LORA"})
"""PEFT's types whose files take the head among `modules_to_save`."""
VALUE_NAME = "value"
VALUE_FILE = "value_head.safetensors"


def add_score_head(model: Any, outputs: int = 1, std: float | None = None) -> None:
    """Add a trainable head without bias, float32, drawn from torch's random state.

    outputs: how many numbers it gives; a reward model's is one. std: of its first weights.
    """
    width = model.get_output_embeddings().weight.shape[-1]
    head = nn.Linear(width, outputs, bias=False, dtype=torch.float32)
    # As Stiennon et al. 2020 have it: a variance of 1 / (d + 1).
    nn.init.normal_(head.weight, std=(width + 1) ** -0.5 if std is None else std)
    model.add_module(NAME, head.to(next(model.parameters()).device))


def save_score_head(model: Any, folder: Path) -> None:
    """Write the head into a folder, and into LoRA's own files where they are there.

    Plain PEFT then loads both onto transformers' sequence classifier with as many labels.
    """
    weight = getattr(model, NAME).weight.detach().cpu().contiguous()
    save_file({f"{NAME}.weight": weight}, folder / FILE)
    _join_peft(weight, folder)


def _join_peft(weight: torch.Tensor, folder: Path) -> None:
    settings, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not (settings.is_file() and weights.is_file()):
        return
    told = json.loads(settings.read_text("utf-8"))
    if told.get("peft_type") not in JOINED:
        return
    whole = [*(told.get("modules_to_save") or []), NAME]
    told |= {"task_type": "SEQ_CLS", "modules_to_save": sorted(set(whole))}
    settings.write_text(json.dumps(told, indent=2, sort_keys=True), "utf-8")
    state = load_file(weights)
    state[f"base_model.model.{NAME}.weight"] = weight
    save_file(state, weights, metadata={"format": "pt"})


def loads_in_peft(folder: Path) -> bool:
    """Return whether plain PEFT loads an adapter's folder, with its head where it has one."""
    settings = folder / "adapter_config.json"
    if not settings.is_file():
        return False
    joined = json.loads(settings.read_text("utf-8")).get("task_type") == "SEQ_CLS"
    return joined or not (folder / FILE).is_file()


def load_score_head(model: Any, folder: Path) -> None:
    """Add the head that `save_score_head` wrote, with as many outputs."""
    weight = load_file(folder / FILE)[f"{NAME}.weight"]
    add_score_head(model, len(weight))
    with torch.no_grad():
        getattr(model, NAME).weight.copy_(weight)


def class_logits(
    model: Any, rows: Sequence[Encoded], shared: Sequence[tuple[int, int]] | None = None
) -> torch.Tensor:
    """Return what the head gives at each row's last token, shape (B, C), float32.

    shared: as for `label_nll`. Raises ValueError where the model has no such head.
    """
    head = getattr(model, NAME, None)
    if not isinstance(head, nn.Linear):
        raise ValueError("the model has no head: it is neither a classifier nor a reward model")
    hidden_BD = last_hidden(model, rows, shared)
    with torch.autocast(hidden_BD.device.type, enabled=False):
        logits: torch.Tensor = head(hidden_BD.float())
    return logits


def why_no_classifier(config: Any) -> str:
    """Return why transformers' sequence classifier of a model is no such head; '' where it is.

    config: the model's. Its classifier has to read one linear layer at the last token.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig

    kinds = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if type(config) not in kinds:
        return f"transformers has no sequence classifier for models of the type {config.model_type}"
    plain = AutoConfig.for_model(**config.to_dict())
    with torch.device("meta"):
        head = getattr(kinds[type(config)](plain), NAME, None)
    if isinstance(head, nn.Linear) and head.bias is None:
        return ""
    return (
        f"transformers' sequence classifier for models of the type {config.model_type} does not"
        " read one linear layer at the last token"
    )


def save_classifier(
    model: Any, folder: Path, names: Sequence[str], problem_type: str, pad_token_id: int | None
) -> None:
    """Write a classifier's head as `save_score_head`, and its config.json.

    names: of the classes, in order. problem_type: transformers' word. A folder that has the whole
    model becomes one that AutoModelForSequenceClassification loads.
    pad_token_id: for the config; without one, transformers classifies one text at a time.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    save_score_head(model, folder)
    config = copy.deepcopy(model.config)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = problem_type
    config.get_text_config().pad_token_id = pad_token_id
    config.architectures = [MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)].__name__]
    config.save_pretrained(folder)
    _join_model(folder)


def _join_model(folder: Path) -> None:
    """Let the index of a whole model's weights name the head's file."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():  # of two files, neither may be called as the only one
        part = folder / "model-00001-of-00001.safetensors"
        single.rename(part)
        with safe_open(part, framework="pt") as weights:
            told = {"metadata": {}, "weight_map": dict.fromkeys(weights.keys(), part.name)}
    elif index.is_file():
        told = json.loads(index.read_text("utf-8"))
    else:
        return
    told["weight_map"][f"{NAME}.weight"] = FILE
    index.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", "utf-8")


def class_names(folder: Path) -> list[str]:
    """Return the names of the classes, in order, that `save_classifier` wrote."""
    told = json.loads((folder / "config.json").read_text("utf-8"))["id2label"]
    return [told[str(number)] for number in range(len(told))]


def rewards(
    model: Any, rows: Sequence[Encoded], shared: Sequence[tuple[int, int]] | None = None
) -> torch.Tensor:
    """Return the reward of each row, shape (B,), float32, in the units the head was trained in.

    model: one with a scalar head, such as `StageContext.load_stage` gives for a reward model.
    shared: as for `label_nll`.
    Raises ValueError where the model has no such head.
    """
    if getattr(getattr(model, NAME, None), "out_features", None) != 1:
        raise ValueError("the model has no scalar head: it is not a reward model")
    return class_logits(model, rows, shared).squeeze(-1)


def add_value_head(model: Any) -> None:
    """Add a trainable head of two layers, float32, that answers 0 until it is trained."""
    width = model.get_output_embeddings().weight.shape[-1]
    inner, outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, 1)
    nn.init.zeros_(outer.weight)
    nn.init.zeros_(outer.bias)
    head = nn.Sequential(inner, nn.GELU(), outer).float()
    model.add_module(VALUE_NAME, head.to(next(model.parameters()).device))


def value_parameters(model: Any) -> list[nn.Parameter]:
    """Return the value head's parameters."""
    return list(getattr(model, VALUE_NAME).parameters())


def save_value_head(model: Any, folder: Path) -> None:
    """Write the value head into a folder."""
    state = getattr(model, VALUE_NAME).state_dict()
    whole = {f"{VALUE_NAME}.{k}": v.detach().cpu().contiguous() for k, v in state.items()}
    save_file(whole, folder / VALUE_FILE)


def load_value_head(model: Any, folder: Path) -> None:
    """Add the value head that `save_value_head` wrote."""
    add_value_head(model)
    state = load_file(folder / VALUE_FILE)
    with torch.no_grad():
        for name, parameter in getattr(model, VALUE_NAME).named_parameters():
            parameter.copy_(state[f"{VALUE_NAME}.{name}"])


def values(model: Any, hidden_ND: torch.Tensor) -> torch.Tensor:
    """Return the value head's answer to each state, shape (N,), float32.

    The head reads the policy's states and does not change them: its loss, far larger than the
    policy's at first, would pull a small adapter away from what it is to say (docs/ppo.md).
    """
    head = getattr(model, VALUE_NAME)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        found: torch.Tensor = head(hidden_ND.detach().float()).squeeze(-1)
    return found
