"""What a stage leaves behind, and how it is found again."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch

from llmft.api import Adapter, AdapterConfig, StageResult
from llmft.api.errors import CheckpointError, PluginError, StageError
from llmft.runs import artifacts
from llmft.system import fsio


class Maker:
    """An adapter or an alignment that writes a file of its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def save(self, model, folder) -> None:
        (folder / self.name).write_text(self.name)


MAKERS = (Maker("a"), Maker("b"))


def save(folder, makers=MAKERS, model=None, **result):
    model = torch.nn.Linear(1, 1) if model is None else model
    result = StageResult(**{"produces": "policy", **result})
    artifacts.save_stage(folder, "run-1", makers, model, result, "f" * 8)
    return folder


def test_the_adapter_is_written_whole_and_then_the_result(tmp_path):
    folder = save(tmp_path / "sft", steps=3)
    assert sorted(p.name for p in (folder / "adapter").iterdir()) == ["a", "b", "manifest.json"]
    result = artifacts.result_of(folder)
    assert (result["run_id"], result["fingerprint"]) == ("run-1", "f" * 8)
    assert (result["produces"], result["steps"]) == ("policy", 3)
    assert "rows_sha256" not in result
    artifacts.verify_stage(folder)


class Forgetful(Adapter[AdapterConfig]):
    """An adapter whose author left `save` for later."""

    method = "forgetful"
    Config = AdapterConfig

    def attach(self, model):
        return model

    def save(self, model, folder):
        pass

    def load(self, model, folder):
        return model

    def disabled(self, model):
        return nullcontext()


def test_an_adapter_that_saves_nothing_ends_the_stage_and_is_named(tmp_path):
    forgetful = Forgetful(AdapterConfig(method="forgetful"))
    with pytest.raises(PluginError, match=r"E502.*'forgetful'.*'save' writes no file"):
        save(tmp_path / "sft", makers=(forgetful,))
    assert not (tmp_path / "sft" / "adapter").exists()


@pytest.mark.parametrize("trained", [True, False])
def test_t2_a_trained_weight_that_is_not_finite_is_never_published(trained, tmp_path):
    model = torch.nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    model.weight.requires_grad_(trained)
    if trained:
        with pytest.raises(StageError, match=r"E301.*'weight' is not finite"):
            save(tmp_path / "sft", model=model)
        assert not (tmp_path / "sft").exists()
    else:
        save(tmp_path / "sft", model=model)


def test_a_task_has_rows_in_place_of_an_adapter(tmp_path):
    folder = tmp_path / "collect"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("{}\n")
    save(folder, makers=(), produces="samples")
    assert not (folder / "adapter").exists()
    assert artifacts.result_of(folder)["rows_sha256"] == fsio.sha256(folder / "rows.jsonl")
    artifacts.verify_stage(folder)
    for damage in (lambda p: p.write_text("[]\n"), lambda p: p.unlink()):
        damage(folder / "rows.jsonl")
        with pytest.raises(CheckpointError, match=r"E401.*rows.jsonl.*--from collect"):
            artifacts.verify_stage(folder)


def test_c2_a_damaged_adapter_is_told_with_the_stage_to_run_again(tmp_path):
    folder = save(tmp_path / "sft")
    (folder / "adapter" / "a").write_text("other")
    with pytest.raises(CheckpointError, match=r"E401.*a' is damaged.*--from sft"):
        artifacts.verify_stage(folder)


@pytest.fixture
def run(tmp_path):
    """A run of four stages; the last one is not finished."""
    names = ["sft", "reward", "ppo", "dpo"]
    (tmp_path / "run.json").write_text(json.dumps({"stages": names}))
    for name, made in (("sft", "policy"), ("reward", "reward_model"), ("ppo", "policy")):
        save(tmp_path / "stages" / name, produces=made)
    (tmp_path / "stages" / "dpo").mkdir()
    return tmp_path


@pytest.mark.parametrize(("stage", "found"), [(None, "ppo"), ("sft", "sft"), ("reward", "reward")])
def test_a_finished_stage_is_found_by_name_or_as_the_last(stage, found, run):
    assert artifacts.stage_folder(run, stage) == run / "stages" / found


def test_a_stage_that_is_not_finished_or_not_there_is_told(run, tmp_path):
    for stage in ("dpo", "sfft"):
        with pytest.raises(
            CheckpointError, match=rf"no finished stage '{stage}' \(finished: sft, "
        ):
            artifacts.stage_folder(run, stage)
    with pytest.raises(CheckpointError, match="is not a run folder"):
        artifacts.stage_folder(run / "stages" / "sft", None)
    for name in ("sft", "reward", "ppo"):
        (run / "stages" / name / "result.json").unlink()
    with pytest.raises(CheckpointError, match=r"no stage of .* is finished"):
        artifacts.stage_folder(run, None)
    with pytest.raises(CheckpointError, match="finished: none"):
        artifacts.stage_folder(run, "sft")


def test_a_stage_is_found_by_what_it_made(run):
    def found(kind, stage=None):
        return artifacts.stage_that_made(kind, run, stage, fix="do so").name

    assert (found("policy"), found("reward_model"), found("policy", "sft")) == (
        "ppo", "reward", "sft"
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="'sft' made a policy, not a reward model"):
        found("reward_model", "sft")
    with pytest.raises(CheckpointError, match=r"no finished stage that made samples.*fix: do so"):
        found("samples")


def test_the_last_of_several_that_made_a_kind_is_taken(run):
    save(run / "stages" / "dpo", produces="reward_model")
    assert artifacts.stage_that_made("policy", run, None, fix="").name == "ppo"
    assert artifacts.stage_that_made("reward_model", run, None, fix="").name == "dpo"


def test_what_is_made_is_said_in_words():
    assert [artifacts._words(kind) for kind in ("reward_model", "samples")] == [
        "a reward model", "samples"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [["sft", "../../etc"], ["a/b"], ["/etc"], [""], ["."], [".."], ["a\0b"], ["x" * 101],
     ["sft", 3], ["sft", None], ["sft", "sft"]],
)  # fmt: skip
def test_a_stage_whose_name_leads_elsewhere_makes_the_run_damaged(names, tmp_path):
    """No recipe can have such a stage: somebody else wrote the file."""
    (tmp_path / "run.json").write_text(json.dumps({"stages": names}))
    with pytest.raises(CheckpointError, match=r"E401.*run.json' is damaged"):
        artifacts.stages_of(tmp_path)


def test_the_longest_names_that_are_read_are_longer_than_any_recipes(tmp_path):
    names = ["x" * 64, "y" * 100]
    (tmp_path / "run.json").write_text(json.dumps({"stages": names}))
    assert artifacts.stages_of(tmp_path) == names
