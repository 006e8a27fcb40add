"""What launchers and queues say of a job: started again, by srun, asked to end by USR."""

from __future__ import annotations

import json
import signal

import pytest

from llmft.api.errors import EnvironmentFault
from llmft.cli.main import main
from llmft.engine.stage import StageRunner
from llmft.system import launcher
from llmft.system.signals import stop_requests


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_job_that_is_started_again_is_known(name):
    assert launcher.restarted({name: "1"})
    assert not launcher.restarted({name: "0"})
    assert not launcher.restarted({})


SRUN = {
    "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04,9],other", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "2",
}  # fmt: skip


def test_the_tasks_of_srun_are_one_group():
    step = dict(SRUN)
    launcher.join_srun(step)
    assert launcher.launch(step) == launcher.Launch(3, 5, 1, 2)
    assert (step["MASTER_ADDR"], step["MASTER_PORT"]) == ("gpu03", "28640")
    launcher.refuse_foreign(step)
    last = {**SRUN, "SLURM_NODEID": "2", "SLURM_STEP_NODELIST": "a-1", "MASTER_PORT": "99"}
    launcher.join_srun(last)
    assert last["LOCAL_WORLD_SIZE"] == "1"
    assert (last["MASTER_ADDR"], last["MASTER_PORT"]) == ("a-1", "99")
    alone = {**SRUN, "SLURM_STEP_NUM_TASKS": "1"}
    launcher.join_srun(alone)
    assert launcher.launch(alone) is launcher.ALONE


def test_srun_with_several_tasks_that_does_not_say_which_is_refused():
    step = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    launcher.join_srun(step)
    with pytest.raises(EnvironmentFault, match=r"E210.*srun has started 2 tasks.*SLURM_LOCALID"):
        launcher.refuse_foreign(step)
    launcher.refuse_foreign({**step, "SLURM_STEP_NUM_TASKS": "1"})
    torchrun = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "a"}
    launcher.refuse_foreign({**step, **torchrun, "MASTER_PORT": "1"})


@pytest.mark.parametrize(("name", "value"), [
    ("SLURM_NODEID", "x"), ("SLURM_STEP_ID", "batch"), ("SLURM_NODEID", "7"),
])  # fmt: skip
def test_what_srun_would_not_write_is_refused_by_name(name, value):
    step = {**SRUN, name: value}
    launcher.join_srun(step)
    named = "SLURM_STEP_TASKS_PER_NODE" if value == "7" else name
    with pytest.raises(EnvironmentFault, match=f"E210.*{named}"):
        launcher.refuse_foreign(step)


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2"])
def test_usr_signals_ask_for_an_end_after_the_step(name):
    number = getattr(signal, name)
    asked = []
    before = signal.signal(number, lambda *_: asked.append("later"))
    try:
        with stop_requests() as stop:
            signal.raise_signal(number)
            assert stop.signal == number
    finally:
        signal.signal(number, before)
    assert asked == ["later"]  # it is raised again for whoever is around the loop


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2"])
def test_a_job_that_usr_ends_goes_on_when_its_queue_starts_it_again(
    name, recipe, tmp_path, monkeypatch, capsys
):
    stage = recipe["stages"][0]
    stage["evaluate"] = None
    stage["train"] |= {"max_steps": 6, "logging_steps": 1}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**recipe, "output_dir": str(tmp_path / "runs")}))
    number, tells = getattr(signal, name), StageRunner._on_step

    def stopped_at_2(stage, step, steps, metrics, log):
        tells(stage, step, steps, metrics, log)
        if step == 2:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(StageRunner, "_on_step", stopped_at_2)
        assert main(["run", str(path)]) == 128 + number
    assert "--resume" in capsys.readouterr().err
    (run,) = (tmp_path / "runs/tiny").iterdir()
    assert not (run / "stages/sft/result.json").is_file()
    by = "TORCHELASTIC_RESTART_COUNT" if name == "SIGUSR1" else "SLURM_RESTART_COUNT"
    monkeypatch.setenv(by, "1")
    assert main(["run", str(path)]) == 0
    assert list((tmp_path / "runs/tiny").iterdir()) == [run]
    lines = (run / "stages/sft/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    monkeypatch.delenv(by)
    assert main(["run", str(path), "--resume=auto"]) == 0  # none is unfinished: it begins
    assert len(list((tmp_path / "runs/tiny").iterdir())) == 2
