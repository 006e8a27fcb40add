"""The real model and the real rows: no padding token, no chat template, and it simply works."""

from __future__ import annotations

import json

import pytest

from tests.extended import extended


@pytest.mark.parametrize("model", extended(["stories260K", "stories15M"], ["stories260K"]))
def test_sft_on_real_trivia_lowers_the_loss_of_real_questions(run, real_assets, model):
    data = real_assets / "data"
    summary = run(
        {
            "recipe": 1,
            "name": "real",
            "model": {"path": str(real_assets / "models" / model)},
            "stages": [
                {
                    "name": "sft",
                    "adapter": {"method": "lora", "r": 8},
                    "alignment": {"method": "sft"},
                    "data": {
                        "method": "triviaqa",
                        "data_files": {
                            "train": str(data / "triviaqa_train.jsonl.gz"),
                            "validation": str(data / "triviaqa_eval.jsonl.gz"),
                        },
                        "limit": 160,
                    },
                    "train": {"learning_rate": 2e-3, "per_device_train_batch_size": 8},
                    "evaluate": {
                        "metrics": ["loss", "exact_match", "f1"],
                        "limit": 24,
                        "max_new_tokens": 8,
                    },
                }
            ],
        }
    )
    stage = summary.stages["sft"]
    assert stage.after["loss"] < stage.before["loss"] - 0.5
    assert 0 <= stage.before["exact_match"] <= stage.after["f1"] <= 1
    lines = (summary.folder / "stages" / "sft" / "samples.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first["prompt"].startswith("Question: ")
    assert first["right"]
