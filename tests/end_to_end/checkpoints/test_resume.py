"""A run that is interrupted and resumed ends in the very state of one that never stopped."""

from __future__ import annotations

import json
import re
import shlex
import signal

import pytest

from tests.end_to_end.checkpoints.harness import run_in_child, state_of, tiny_recipe, tree
from tests.extended import extended

ADAPTERS = {
    "lora": {"r": 2, "lora_dropout": 0.2},
    "lora on both ends": {"method": "lora", "r": 2, "lora_dropout": 0.2,
                          "target_modules": ["all-linear", "embed_tokens", "lm_head"]},
    "dora": {"r": 2, "lora_dropout": 0.2},
    "qlora": {"r": 2, "lora_dropout": 0.2},
    "prefix": {"num_virtual_tokens": 3, "prefix_projection": True},
    "ptuning": {"num_virtual_tokens": 3, "encoder_reparameterization_type": "LSTM",
                "encoder_dropout": 0.2},
    "prompt": {"num_virtual_tokens": 3},
    "full": {"freeze_parameters": ["embed_tokens"]},
}  # fmt: skip


def at(step: int, number: int = signal.SIGKILL, phase: str = "train", stage: str = "") -> dict:
    return {"kind": "signal", "number": number, "at": step, "phase": phase, "stage": stage}


def two_stages(recipe: dict) -> dict:
    """Return the recipe with a second stage that goes on with the first one's adapter."""
    second = {k: v for k, v in recipe["stages"][0].items() if k != "adapter"}
    recipe["stages"].append({**second, "name": "more", "start_from": "sft"})
    for stage in recipe["stages"]:
        stage["evaluate"] = {"metrics": ["loss"], "holdout": 0.3}
        stage["train"] = {**stage["train"], "max_steps": 4, "save_strategy": "epoch"}
    return recipe


@pytest.fixture(scope="session")
def pipeline(server, tmp_path_factory, model_folder, rows_file):
    """The two stages that nothing stops."""
    data = two_stages(tiny_recipe(model_folder, rows_file))
    done = run_in_child(server, tmp_path_factory.mktemp("pipeline"), data, "whole")
    assert done.code == 0, done.text
    return done


@pytest.mark.parametrize("method", extended(ADAPTERS, ("lora",)))
def test_t9_c7_a_killed_run_ends_bit_exactly(go, recipe, method):
    recipe["stages"][0]["adapter"] = {"method": method, **ADAPTERS[method]}
    recipe["stages"][0]["train"]["neftune_noise_alpha"] = 5.0  # random numbers of every step
    whole = go(recipe, "whole")
    assert whole.code == 0, whole.text
    assert go(recipe, "killed", fault=at(3)).code == -signal.SIGKILL  # in mid-epoch
    resumed = go(recipe, "killed", resume=True)
    assert resumed.code == 0, resumed.text
    assert "continues after step 2" in resumed.text
    assert state_of(resumed.folder) == state_of(whole.folder)


def test_t9_c7_a_killed_run_on_rows_grouped_by_length_ends_bit_exactly(go, recipe):
    recipe["stages"][0]["train"] |= {
        "train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2,
        "max_steps": 9,
    }  # fmt: skip
    whole = go(recipe, "whole")
    assert whole.code == 0, whole.text
    assert go(recipe, "killed", fault=at(7)).code == -signal.SIGKILL  # after an epoch or more
    resumed = go(recipe, "killed", resume=True)
    assert resumed.code == 0, resumed.text
    assert "continues after step 6" in resumed.text
    assert state_of(resumed.folder) == state_of(whole.folder)
    recipe["stages"][0]["train"]["train_sampling_strategy"] = "random"
    assert state_of(go(recipe, "random").folder) != state_of(whole.folder)


@pytest.mark.extended
def test_t9_c7_a_killed_run_on_chunks_of_text_ends_bit_exactly(go, recipe):
    recipe["stages"][0]["data"]["columns"] = {"text": "{prompt}{completion}"}
    recipe["stages"][0]["train"] |= {
        "packing": True, "packing_strategy": "wrapped", "max_length": 16, "max_steps": 5,
    }  # fmt: skip
    whole = go(recipe, "whole")
    assert whole.code == 0, whole.text
    assert "chunks of 16 tokens" in whole.text
    assert go(recipe, "killed", fault=at(3)).code == -signal.SIGKILL  # in the second epoch
    resumed = go(recipe, "killed", resume=True)
    assert resumed.code == 0, resumed.text
    assert "continues after step 2" in resumed.text
    assert state_of(resumed.folder) == state_of(whole.folder)


@pytest.mark.extended
def test_t9_c7_a_killed_run_on_streamed_rows_ends_bit_exactly(go, recipe, rows_file):
    recipe["stages"][0]["data"] |= {
        "columns": {"text": "{prompt}{completion}"}, "streaming": True, "buffer_size": 7,
    }  # fmt: skip
    recipe["stages"][0]["train"] |= {
        "packing": True, "packing_strategy": "wrapped", "max_length": 16, "save_steps": 1,
        "per_device_train_batch_size": 2, "max_steps": 7,
    }  # fmt: skip
    whole = go(recipe, "whole")
    assert whole.code == 0, whole.text
    assert "covers the first 7, all that were read" in whole.text
    for step in (2, 6):  # in the first pass over 18 rows, and in the second
        resume = step > 2
        stopped = go(recipe, "killed", resume=resume, fault=at(step))
        assert stopped.code == -signal.SIGKILL
    resumed = go(recipe, "killed", resume=True)
    assert resumed.code == 0, resumed.text
    assert "continues after step 5" in resumed.text
    assert state_of(resumed.folder) == state_of(whole.folder)


@pytest.mark.extended
def test_t9_c7_a_killed_run_on_a_mixture_ends_bit_exactly(go, recipe, tmp_path):
    other = tmp_path / "other.jsonl"
    rows = [{"prompt": f"name {n}:", "completion": f" n{n}"} for n in range(7)]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = recipe["stages"][0]["data"]
    recipe["stages"][0]["data"] = {
        "method": "mix", "mixing": "interleave", "stopping_strategy": "all_exhausted",
        "sources": [{**first, "weight": 0.4, "name": "a"},
                    {"method": "jsonl", "path": str(other), "weight": 0.6, "name": "b"}],
    }  # fmt: skip
    recipe["stages"][0]["evaluate"] = {"metrics": ["loss"], "holdout": 0.3}
    whole = go(recipe, "whole")
    assert whole.code == 0, whole.text
    assert go(recipe, "killed", fault=at(3)).code == -signal.SIGKILL
    resumed = go(recipe, "killed", resume=True)
    assert resumed.code == 0, resumed.text
    assert "continues after step 2" in resumed.text
    assert state_of(resumed.folder) == state_of(whole.folder)


@pytest.mark.parametrize("method", extended(["dpo", "orpo", "kto", "cpo", "reward"], ["dpo"]))
def test_t9_c7_a_killed_preference_stage_ends_bit_exactly(go, recipe, tmp_path, method):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"say {n}:", "chosen": f" {n}", "rejected": " no"} for n in range(18)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe["stages"][0]["alignment"] = {"method": method}
    recipe["stages"][0]["data"] = {"method": "preference", "path": str(path)}
    recipe["stages"][0]["evaluate"] = {"metrics": ["loss"], "holdout": 0.2}
    whole = go(recipe, "whole")
    assert whole.code == 0, whole.text
    assert go(recipe, "killed", fault=at(3)).code == -signal.SIGKILL
    resumed = go(recipe, "killed", resume=True)
    assert resumed.code == 0, resumed.text
    assert state_of(resumed.folder) == state_of(whole.folder)
    results = [json.loads((f / "stages/sft/result.json").read_text()) for f in
               (whole.folder, resumed.folder)]  # fmt: skip
    assert results[0]["before"] == results[1]["before"]
    assert results[0]["after"] == results[1]["after"]


@pytest.mark.extended
def test_t9_c8_a_run_killed_at_every_other_step_ends_bit_exactly(go, recipe, whole):
    place = "killed"
    for number, step in enumerate((1, 3, 4, 6)):  # before a save, after one, in the last epoch
        assert go(recipe, place, resume=number > 0, fault=at(step)).code == -signal.SIGKILL
    last = go(recipe, place, resume=True)
    assert last.code == 0
    assert state_of(last.folder) == state_of(whole.folder)
    assert metrics_of(last)["train_loss"] == metrics_of(whole)["train_loss"]


@pytest.mark.parametrize(("step", "phase", "stage"), extended(
    [(4, "train", "sft"), (0, "load the model", "more"), (3, "train", "more"),
     (5, "evaluate", "more")],
    plain=[(3, "train", "more")],
))  # fmt: skip
def test_c12_a_stage_that_is_finished_is_not_run_again(go, recipe, pipeline, step, phase, stage):
    recipe = two_stages(recipe)
    killed = go(recipe, "killed", fault=at(step, phase=phase, stage=stage))
    assert killed.code == -signal.SIGKILL
    first = killed.folder / "stages" / "sft"
    before = tree(first)
    resumed = go(recipe, "killed", resume=True)
    assert resumed.code == 0, resumed.text
    assert state_of(resumed.folder) == state_of(pipeline.folder)
    if stage == "more":
        assert tree(first) == before
        assert "sft: already finished" in resumed.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_t6_t7_a_signal_saves_at_the_end_of_the_step_and_says_how_to_go_on(
    go, recipe, whole, number
):
    recipe["stages"][0]["train"]["save_strategy"] = "no"  # a signal saves all the same
    stopped = go(recipe, "stopped", fault=at(3, number))
    assert stopped.code == 128 + number
    assert [p.name for p in stopped.folder.glob("stages/sft/checkpoints/*")] == ["step-3"]
    assert not (stopped.folder / "lock").exists()
    command = shlex.split(re.search(r"continue with: (llmft run .*)", stopped.text)[1])
    assert command[-2:] == [str(stopped.folder), "--resume"]
    recipe["stages"][0]["train"]["save_strategy"] = "steps"
    resumed = go(recipe, "stopped", words=command[3:])
    assert resumed.code == 0, resumed.text
    assert "ended without notice" not in resumed.text
    ours, theirs = state_of(resumed.folder), state_of(whole.folder)
    # Its last two checkpoints are of the steps 4 and 6, as they are where nothing stopped it.
    assert ours == theirs


@pytest.mark.parametrize(
    "phase", extended(["load the model", "read the rows", "tokenise"], ["tokenise"])
)
def test_t6_a_signal_before_the_first_step_leaves_at_once_and_saves_nothing(go, recipe, phase):
    stopped = go(recipe, "stopped", fault=at(0, signal.SIGTERM, phase=phase))
    assert stopped.code == 143
    assert "between two steps" in stopped.text
    assert not list(stopped.folder.glob("stages/*/checkpoints/*"))


def test_t5_the_next_start_says_that_the_run_ended_without_notice(go, recipe):
    killed = go(recipe, "killed", fault=at(3))
    held = json.loads((killed.folder / "lock").read_text())
    resumed = go(recipe, "killed", resume=True)
    assert (
        "the previous run ended without notice at step 3 of 6 of the stage 'sft'"
        f" (process {held['pid']} on {held['host']})"
    ) in resumed.text
    entry = json.loads((resumed.folder / "run.json").read_text())["resumed"][0]
    assert entry["killed"]["at"] == held["at"]


def test_c6_a_finished_run_is_not_touched(go, recipe):
    done = go(recipe, "done")
    before = tree(done.folder)
    again = go(recipe, "done", resume=True)
    assert again.code == 0
    assert "already finished" in again.text
    assert tree(done.folder) == before


@pytest.mark.extended
def test_c6_a_finished_stage_that_was_edited_runs_again_and_loses_nothing(go, recipe):
    done = go(recipe, "done")
    made = tree(done.folder / "stages" / "sft")
    recipe["stages"][0]["train"]["max_steps"] = 9
    again = go(recipe, "done", resume=True)
    assert again.code == 0, again.text
    assert "sft: runs again" in again.text
    assert tree(done.folder / "replaced" / "sft-1") == made
    result = json.loads((done.folder / "stages/sft/result.json").read_text())
    assert result["steps"] == 9


def test_c5_an_edited_learning_rate_is_applied_with_a_notice(go, recipe):
    go(recipe, "edited", fault=at(3))
    recipe["stages"][0]["train"]["learning_rate"] = 0.04
    resumed = go(recipe, "edited", resume=True)
    assert resumed.code == 0, resumed.text
    assert "edited since: stages.sft.train.learning_rate: 0.01 -> 0.04" in resumed.text
    lines = (resumed.folder / "stages/sft/metrics.jsonl").read_text().splitlines()
    rates = {entry["step"]: entry["learning_rate"] for entry in map(json.loads, lines)}
    assert rates == pytest.approx({1: 0, 2: 0.005, 3: 0.04, 4: 0.03, 5: 0.02, 6: 0.01})
    assert "learning_rate: 0.04" in (resumed.folder / "resolved.yaml").read_text()


def test_c5_a_rank_or_a_seed_of_another_run_is_refused_with_its_line(go, recipe):
    killed = go(recipe, "edited", fault=at(3))
    before = tree(killed.folder)
    recipe["stages"][0]["adapter"]["r"] = 4
    recipe["seed"] = 3
    refused = go(recipe, "edited", resume=True)
    assert refused.code == 6
    assert refused.text.count("error[E404]") == 2
    assert "stages.sft.adapter.r: 2 -> 4" in refused.text
    assert "recipe.yaml:" in refused.text
    assert tree(killed.folder) == before


@pytest.mark.extended
def test_d13_rows_that_changed_are_refused(go, recipe, tmp_path):
    rows = tmp_path / "rows.jsonl"
    text = "".join(json.dumps({"prompt": f"{n}", "completion": "x"}) + "\n" for n in range(18))
    rows.write_text(text)
    recipe["stages"][0]["data"]["path"] = str(rows)
    go(recipe, "data", fault=at(3))
    rows.write_text(text.replace("17", "71"))
    refused = go(recipe, "data", resume=True)
    assert refused.code == 6
    assert "E405" in refused.text
    assert "train rows" in refused.text
    rows.write_text(text)
    assert go(recipe, "data", resume=True).code == 0


def test_c3_a_run_whose_checkpoints_are_all_bad_is_refused(go, recipe):
    killed = go(recipe, "bad", fault=at(5))
    for path in killed.folder.glob("stages/sft/checkpoints/*/state.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    refused = go(recipe, "bad", resume=True)
    assert refused.code == 6
    assert "error[E403] none of 2 checkpoints" in refused.text.replace("\n", " ")


@pytest.mark.extended
def test_t9_a_run_that_saved_nothing_starts_again(go, recipe):
    recipe["stages"][0]["train"]["save_strategy"] = "no"
    whole = go(recipe, "whole")
    go(recipe, "killed", fault=at(3))
    again = go(recipe, "killed", resume=True)
    assert again.code == 0
    assert "the stage restarts" in again.text
    assert state_of(again.folder) == state_of(whole.folder)


def metrics_of(run) -> dict[str, float]:
    return json.loads((run.folder / "stages/sft/result.json").read_text())["metrics"]


def test_train_loss_is_the_mean_over_the_steps_as_in_transformers(whole):
    lines = (whole.folder / "stages/sft/metrics.jsonl").read_text().splitlines()
    losses = [entry["loss"] for entry in map(json.loads, lines) if entry["phase"] == "train"]
    assert len(losses) == 6
    assert metrics_of(whole)["train_loss"] == pytest.approx(sum(losses) / 6, rel=1e-12)
    assert metrics_of(whole)["train_loss"] != pytest.approx(losses[-1], rel=1e-3)


def test_result_json_tells_what_a_save_costs(whole):
    metrics = metrics_of(whole)
    assert metrics["checkpoints"] == 3
    assert 0 < metrics["checkpoint_ms"] < 5_000


@pytest.mark.parametrize("words", [
    ["--set", "stages.sft.train.learning_rate=0.05"], ["--from", "sft"],
])  # fmt: skip
@pytest.mark.extended
def test_c5_c12_a_stage_begins_anew_where_one_that_it_reads_has_run_again(go, recipe, words):
    recipe = two_stages(recipe)
    recipe["stages"][1]["train"] |= {"save_strategy": "steps", "save_steps": 1}
    go(recipe, "edited", fault=at(3, stage="more"))
    again = go(recipe, "edited", resume=True, words=words)
    assert again.code == 0, again.text
    assert "more: restarts, because a stage that it reads has run again" in again.text
    assert (again.folder / "replaced" / "more-1" / "checkpoints").is_dir()
    straight = go(recipe, "straight", words=words if words[0] == "--set" else ())
    ours, theirs = state_of(again.folder), state_of(straight.folder)
    assert ours == theirs


@pytest.mark.parametrize(
    "file", extended(["run.json", "lock.json", "stages/sft/result.json"], ["lock.json"])
)
def test_c1_a_damaged_file_of_a_run_is_named_and_never_a_traceback(go, recipe, file):
    recipe = two_stages(recipe)
    killed = go(recipe, "killed", fault=at(3, stage="more"))
    path = killed.folder / file
    for damage in (path.read_bytes()[:-9], b"\xff\x00", b"[1]\n"):
        path.write_bytes(damage)
        resumed = go(recipe, "killed", resume=True)
        assert resumed.code == 6
        assert re.search(rf"error\[E401\] '.*{path.name}' is damaged — fix: ", resumed.text)


@pytest.mark.extended
def test_c1_a_finished_stage_that_is_damaged_can_be_run_again(go, recipe):
    recipe["stages"][0]["train"]["save_strategy"] = "no"
    done = go(recipe, "done")
    made = state_of(done.folder)
    weights = done.folder / "stages/sft/adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    refused = go(recipe, "done", resume=True)
    assert refused.code == 6
    assert "is damaged — fix: run the stage again with --from sft" in refused.text
    again = go(recipe, "done", resume=True, words=["--from", "sft"])
    assert again.code == 0, again.text
    assert state_of(again.folder) == made


@pytest.mark.extended
def test_c4_a_run_folder_that_was_renamed_is_told(go, recipe):
    killed = go(recipe, "killed", fault=at(3))
    renamed = killed.folder.rename(killed.folder.with_name("mine"))
    resumed = go(recipe, "killed", resume=True, words=[str(renamed)])
    assert resumed.code == 6
    assert f"of the run '{killed.folder.name}', not of 'mine'" in resumed.text
    assert "if the run folder was renamed, restore its name" in resumed.text


def test_o1_c6_a_run_that_another_process_finished_meanwhile_is_not_touched(
    run, recipe, monkeypatch
):
    from llmft.engine import session
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry

    done = run(recipe)
    result, before = done.folder / "stages/sft/result.json", tree(done.folder)
    away = result.rename(done.folder / "away")
    monkeypatch.setattr(session, "refuse_faults", lambda *_, **__: away.rename(result))
    registry = Registry.discover()
    loaded = load_recipe(done.folder / "recipe.yaml", registry, [f"output_dir={done.folder}"])
    assert session.resume_recipe(loaded, done.folder).already_finished
    assert tree(done.folder) == before


def test_the_command_that_goes_on_finds_the_earlier_run_that_a_stage_starts_from(go, recipe):
    first = go(recipe, "place")
    recipe["name"] = "second"
    del recipe["stages"][0]["adapter"]
    recipe["stages"][0]["start_from"] = f"run:{first.folder.name}/sft"
    stopped = go(recipe, "place", fault=at(3, signal.SIGINT))
    command = shlex.split(re.search(r"continue with: (llmft run .*)", stopped.text)[1])
    assert command[-2:] == ["--set", f'output_dir="{first.folder.parents[1]}"']
