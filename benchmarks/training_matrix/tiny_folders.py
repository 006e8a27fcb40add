"""A tiny random model of every causal model type, in a folder that transformers loads."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

sys.path.insert(0, str(Path(__file__).parents[1]))
from architectures import AS_PUBLISHED, model_types

__all__ = ["model_types", "same_as", "tiny_folder"]
BASE_DROPOUT = 0.1
_LAYERS = "layerdrop"


class NoTinyModelError(Exception):
    """No tiny model can be made of a type; the message says what was raised."""


def tiny_folder(home: Path, kind: str, *, dropout: bool) -> Path:
    """Return the folder of a model type's tiny model, made when first asked for.

    dropout: whether its config has the architecture's dropouts at 0.1, and not at 0.
    Raises NoTinyModelError where none can be made of it.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    from llmft.modeling.tiny_models import tiny_model_folder

    place = home / f"{kind}{'-dropout' if dropout else ''}"
    if (place / "done").is_file():
        return place / "model"
    if (place / "failed").is_file():
        raise NoTinyModelError((place / "failed").read_text())
    place.mkdir()
    try:
        config = small(kind)
        _set_dropout(config, BASE_DROPOUT if dropout else 0.0)
        of_text = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
        cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config) if of_text else CONFIG_MAPPING[kind]]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                model = cls._from_config(config)
            except ValueError:  # some take no dropout of attention's weights
                _set_dropout(config, 0.0, only="attention")
                model = cls._from_config(config)
            _stir(model.float())
        ids = torch.arange(97, 120)[None]
        model.train()(input_ids=ids, use_cache=False).logits.float().logsumexp(-1).sum().backward()
        model.zero_grad()
        model.generation_config.eos_token_id = 256
        tiny_model_folder(place, model)
        if not of_text:  # only the whole is known to load as a causal model
            CONFIG_MAPPING[kind](text_config=config.to_dict()).save_pretrained(place / "model")
    except Exception as error:
        lines = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {lines[0][:160] if lines else ''}"
        (place / "failed").write_text(said)
        raise NoTinyModelError(said) from error
    (place / "done").touch()
    return place / "model"


@cache
def _stated(kind: str) -> Any:
    from transformers import CONFIG_MAPPING

    from llmft.modeling.tiny_configs import small_config

    config = small_config(CONFIG_MAPPING[kind](**AS_PUBLISHED.get(kind, {})))
    if getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    config.eos_token_id = 256
    with suppress(StrictDataclassError):  # where it has to be a number
        config.bos_token_id = None
    return config


def small(kind: str) -> Any:
    """Return a model type's small config."""
    import copy

    return copy.deepcopy(_stated(kind))


def same_as(kind: str) -> str:
    """Return the model type as which this one's small config loads; '' where it is its own."""
    try:
        found = str(small(kind).model_type)
    except Exception:
        return ""
    return found if found != kind and found in model_types() else ""


def _set_dropout(config: Any, p: float, only: str = "") -> None:
    """Set every dropout of a config; layers left out, and noise in routers, are none.

    only: what a name has to have in it.
    """
    for name, value in list(vars(config).items()):
        if not isinstance(value, float) or isinstance(value, bool):
            continue
        if _LAYERS in name or "jitter" in name:
            setattr(config, name, 0.0)
        elif "drop" in name and only in name:
            setattr(config, name, p)


def _stir(model: Any) -> None:
    """Give weights a size at which attention, sinks and positions show in the loss."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.3 if "embed" in name or "wte" in name else 0.1)
            elif "sink" in name:
                parameter.normal_(0, 1.0)
            else:  # norms, biases, decays: at their start they may hide what they do
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
