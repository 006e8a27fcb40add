"""A checkpoint answers and scores as the model did at its step, also in a stage that stopped."""

from __future__ import annotations

import json

import pytest
import torch

from llmft.api.errors import CheckpointError
from llmft.inference.answering import answer, load_run, model_of_run, stage_with_checkpoint
from llmft.inference.scoring import score_file
from llmft.modeling.base_model import BaseModel
from llmft.registry.registry import Registry

TRAIN = {
    "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.05,
    "save_strategy": "steps", "save_steps": 2, "save_total_limit": 9,
}  # fmt: skip


@pytest.fixture
def made(run, model_folder, tmp_path):
    """A run of a policy that goes on with another one's adapter, and of a reward model."""
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"say {n}:", "completion": f" {n}", "chosen": f" {n}", "rejected": " no"}
            for n in range(12)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lora = {"method": "lora", "r": 2}
    first = {"name": "first", "adapter": lora, "alignment": {"method": "sft"},
             "data": {"method": "jsonl", "path": str(path)}, "train": TRAIN}  # fmt: skip
    more = {k: v for k, v in first.items() if k != "adapter"}
    reward = {"name": "rm", "adapter": lora, "alignment": {"method": "reward"},
              "data": {"method": "preference", "path": str(path)}, "train": TRAIN}  # fmt: skip
    stages = [first, {**more, "name": "more", "start_from": "first"}, reward]
    model = {"path": str(model_folder)}
    return run({"recipe": 1, "name": "tiny", "model": model, "stages": stages}).folder


def test_the_last_checkpoint_is_the_result_and_an_earlier_one_is_not(made, tmp_path):
    job = load_run(made, Registry.discover())
    ids = torch.arange(12).unsqueeze(0)

    def logits(stage, step):
        bound, base = job.stage(stage), BaseModel(job.recipe.model)
        model = model_of_run(job, bound, base, made / "stages" / stage, varlen=False, step=step)
        with torch.no_grad():
            return model(input_ids=ids).logits

    for stage in ("first", "more"):
        assert torch.equal(logits(stage, 4), logits(stage, None))
        assert not torch.allclose(logits(stage, 2), logits(stage, 4))
    (made / "stages/more/result.json").unlink()  # as if it had been stopped
    told = answer(job, made, ["say 3:"], step=2, max_new_tokens=4)
    assert told == answer(job, made, ["say 3:"], step=2, stage="more", max_new_tokens=4)
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "say 3: 3"}\n')
    scores = [score_file(job, made, file, step=step)[0]["score"] for step in (2, 4, None)]
    assert scores[0] != scores[1] == scores[2]


def test_a_checkpoint_that_is_not_there_is_told_with_those_that_are(made):
    job = load_run(made, Registry.discover())
    with pytest.raises(CheckpointError, match=r"E402.*after step 3.*first: 2, 4; more: 2, 4"):
        stage_with_checkpoint(job, made, "policy", None, 3)
    with pytest.raises(CheckpointError, match=r"of the stage 'rm'.*train.save_strategy"):
        stage_with_checkpoint(job, made, "policy", "rm", 2)
    path = made / "stages/more/checkpoints/step-2/state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="E401"):
        answer(job, made, ["say 3:"], step=2)
