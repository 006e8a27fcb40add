"""Runs whose base is trained, too: full fine-tuning, and an adapter on its result."""

from __future__ import annotations

import pytest
import torch

from llmft.api import SamplingParams
from llmft.api.errors import RecipeError
from llmft.exporting.folders import export
from llmft.exporting.merging import merge
from llmft.inference.answering import answer
from llmft.inference.chatting import Conversation
from llmft.inference.evaluating import Asked, evaluate
from llmft.inference.trained import trained_stage
from llmft.verifying.export import verify_export
from tests.exporting.conftest import LORA
from tests.exporting.test_merging import logits, plain


@pytest.fixture
def staged(run, rows_file):
    """A run of full fine-tuning, and of an adapter that goes on from it."""
    shared = {
        "alignment": {"method": "sft"}, "data": {"method": "jsonl", "path": str(rows_file)},
        "train": {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01,
                  "save_strategy": "steps", "save_steps": 1},
        "evaluate": {"metrics": ["loss"], "holdout": 0.3},
    }  # fmt: skip
    return run(
        {"name": "full", "adapter": {"method": "full"}, **shared},
        {"name": "lora", "adapter": LORA, "start_from": {"stage": "full", "merge": True}, **shared},
    ).folder


@pytest.mark.extended
def test_what_is_trained_below_goes_with_the_adapter(staged, model_folder, tmp_path):
    whole, adapted = trained_stage(staged, "full"), trained_stage(staged, "lora")
    first = merge(whole, tmp_path / "full").folder
    assert torch.equal(logits(plain(first)), logits(plain(staged / "stages/full/adapter")))
    assert not torch.allclose(logits(plain(first)), logits(plain(model_folder)), atol=0.05)
    second = merge(adapted, tmp_path / "lora").folder
    assert verify_export(adapted, second, prompts=2, max_new_tokens=4).fine
    assert not verify_export(adapted, first, prompts=2, max_new_tokens=4).fine
    with pytest.raises(RecipeError, match=r"not stand on the base alone: full merged"):
        export(adapted, "vllm", tmp_path / "vllm")
    with pytest.raises(RecipeError, match="PEFT does not know"):
        export(whole, "peft", tmp_path / "peft")
    for trained in (whole, adapted):
        talked = Conversation(trained, SamplingParams(6, temperature=0.0), whole=False)
        talked.reply("say 3:")
        (base,) = answer(
            trained.job, staged, ["say 3:"], stage=trained.folder.name, max_new_tokens=6,
            with_adapter=False,
        )  # fmt: skip
        assert talked.base_reply().strip() == base
    last = evaluate(Asked(str(staged), stage="lora"))
    assert evaluate(Asked(str(staged), stage="lora", step=2)).metrics == last.metrics
    assert evaluate(Asked(str(staged), stage="lora", step=1)).metrics != last.metrics


def test_of_a_prefix_on_a_merged_stage_nothing_is_named_that_would_fail(run, rows_file, tmp_path):
    shared = {
        "alignment": {"method": "sft"}, "data": {"method": "jsonl", "path": str(rows_file)},
        "train": {"max_steps": 1, "per_device_train_batch_size": 4},
    }  # fmt: skip
    prefix = {"method": "prefix", "num_virtual_tokens": 4}
    folder = run(
        {"name": "lora", "adapter": LORA, **shared},
        {"name": "last", "adapter": prefix, "start_from": {"stage": "lora", "merge": True},
         **shared},
    ).folder  # fmt: skip
    trained = trained_stage(folder, "last")
    for refused in (
        lambda: merge(trained, tmp_path / "out"),
        lambda: export(trained, "peft", tmp_path / "out"),
        lambda: export(trained, "vllm", tmp_path / "out"),
    ):
        with pytest.raises(RecipeError) as caught:
            refused()
        fix = caught.value.faults[0].fix
        assert "llmft serve RUN" in fix
        assert "llmft merge" not in fix
        assert "llmft export" not in fix
    card = (folder / "stages/last/adapter/README.md").read_text()
    assert "merged into it: `lora`" in card
    assert "llmft merge" not in card
