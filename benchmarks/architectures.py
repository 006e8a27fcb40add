"""Every causal model of the installed transformers: which shortcuts of llmft are right on it.

    python benchmarks/architectures.py [MODEL_TYPE...] [--page docs/architectures.md]

For each model type a small random copy is made, and each shortcut is compared with every row alone
in plain transformers, as a run does it for its own model.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmft.modeling import levers
from llmft.modeling.lever_trial import Trial

COLUMNS = ("padding_free", "shared_prompt", "last_layer", "frozen_head", "identity_head",
           "cached_decoding")  # fmt: skip
HEADS = ("padding-free", "shared prompt", "last layer", "frozen head", "states", "cached")


AS_PUBLISHED = {
    "cohere_compass_text": {
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 10,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 50_000.0},
            "full_attention": None,
        },
    },
    "dbrx": {"attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500_000.0}},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
              "num_experts_per_tok": 2},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": 128,
        "indexer_budget": 2048, "indexer_compress_ratio": 16,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10_000_000.0, "partial_rotary_factor": 0.25,
        },
    },
    "xmod": {"default_language": "en_XX"},
}  # fmt: skip
"""What published models state, or would have to, where the default config makes no model, or one
without half of its layers."""


def model_types() -> list[str]:
    """Return every model type of the map of causal models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def found(kind: str) -> levers.Levers:
    """Return the levers of a model type; with a reason where it cannot be tried."""
    from transformers import CONFIG_MAPPING

    from llmft.api.model_settings import ModelSource
    from llmft.modeling.base_model import dense_attention

    try:
        config = CONFIG_MAPPING[kind](**AS_PUBLISHED.get(kind, {}))
        if getattr(config, "is_decoder", None) is False:
            config.is_decoder = True
        trial = Trial.of(config, dense_attention(ModelSource(path=kind), config))
    except Exception as error:
        return replace(levers.NONE, unproven=levers.said(error))
    return levers.found_by(trial, "float32")


def line(kind: str, one: levers.Levers) -> str:
    """Return a row of the table."""
    marks = ["yes" if getattr(one, name) else "-" for name in COLUMNS]
    why = one.unproven or one.looks_ahead or one.wrong_padded
    return f"| `{kind}` | {verdict(one)} | {' | '.join(marks)} | {why.replace('|', '/')} |"


def verdict(one: levers.Levers) -> str:
    """Return in a word how rows are computed."""
    if one.unproven:
        return "not tried"
    if one.looks_ahead or one.wrong_padded:
        return "refused"
    return "padding-free" if one.padding_free else "padded"


def page(rows: dict[str, levers.Levers]) -> str:
    """Return the table as a page of the documentation."""
    import torch
    import transformers

    counts = Counter(verdict(one) for one in rows.values())
    told = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    table = "\n".join(line(kind, one) for kind, one in rows.items())
    return f"""# Architectures

Every causal model that transformers {transformers.__version__} has, with torch
{torch.__version__.partition("+")[0]}: {len(rows)} model types; {told}.

When a model is first used, llmft makes a small random copy of its config, and compares each of its
shortcuts with every row alone in plain transformers: losses to {1e-4:g} of themselves, gradients to
{2e-3:g}. One that disagrees, or fails, is left out, and the run says so. "Padded" means that rows
are padded in a batch; "refused", that even this changes a row's loss, or that a token's logits
depend on tokens after it; "not tried", that no small copy could be made of the type's config, for
the reason that is given. Models of the last two are refused before their weights are loaded.

`python benchmarks/architectures.py --page docs/architectures.md` writes this page.

| model type | rows | {" | ".join(HEADS)} | why |
|---|---|{"---|" * len(HEADS)}---|
{table}
"""


def main() -> None:
    """Print a line for each model type, and write the page where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--page")
    asked: Any = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = {}
    for kind in asked.kinds or model_types():
        started = time.monotonic()
        rows[kind] = found(kind)
        print(f"{time.monotonic() - started:5.1f} s {line(kind, rows[kind])}", flush=True)
    if asked.page:
        Path(asked.page).write_text(page(rows), "utf-8")


if __name__ == "__main__":
    main()
