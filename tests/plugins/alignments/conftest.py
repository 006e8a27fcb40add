"""Pairs, tiny models and a function that runs a recipe of preferences in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmft.api import PreferenceRow
from llmft.api.train_settings import TrainSettings
from llmft.data.encoding import Encoder
from llmft.data.pair_encoding import encode_pairs
from llmft.modeling.tiny_models import tiny_tokenizer
from llmft.testing import measures

PAIRS = [
    {"prompt": "Q: the capital of France?", "chosen": " Paris", "rejected": " Lyon, I think"},
    {"prompt": "Q: 2+2?", "chosen": " four, of course", "rejected": " five"},
    {"prompt": "Name a planet.", "chosen": " Neptune", "rejected": " Oslo"},
    {"prompt": "Say yes or no.", "chosen": " no", "rejected": " nobody knows"},
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with measures.one_thread():
        yield


def encoded(records=PAIRS, tokenizer=None, **settings):
    """Return records as encoded pairs."""
    rows = [PreferenceRow(**record) for record in records]
    encoder = Encoder(tokenizer or tiny_tokenizer(pad=True), settings.pop("limit", 256))
    return encode_pairs(encoder, rows, TrainSettings(**settings))[0]


@pytest.fixture
def pairs():
    return encoded()


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    rows = [
        {"prompt": f"say {n}:", "chosen": f" {n % 7}", "rejected": f" {(n + 3) % 7} or so"}
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


TRAIN = {
    "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.01, "logging_steps": 1,
}  # fmt: skip


@pytest.fixture
def stage(pairs_file):
    """Return a stage of a recipe as plain data."""

    def stage(method: str, **extra):
        adapter = {} if "start_from" in extra else {"adapter": {"method": "lora", "r": 4}}
        return {
            "name": extra.pop("name", method),
            **adapter,
            "alignment": {"method": method, **extra.pop("options", {})},
            "data": {"method": "preference", "path": str(pairs_file)},
            "train": dict(TRAIN),
            "evaluate": {"metrics": ["loss"], "holdout": 0.2, "max_new_tokens": 4},
            **extra,
        }

    return stage


def metrics_of(summary, stage: str) -> list[dict]:
    """Return the logged training metrics of a stage."""
    path = summary.folder / "stages" / stage / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line.get("phase") == "train"]
