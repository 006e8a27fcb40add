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


def test_srun_with_several_tasks_is_refused():
    step = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    with pytest.raises(EnvironmentFault, match=r"E210.*srun has started 2 tasks"):
        launcher.refuse_foreign(step)
    launcher.refuse_foreign({**step, "SLURM_STEP_NUM_TASKS": "1"})
    torchrun = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "a"}
    launcher.refuse_foreign({**step, **torchrun, "MASTER_PORT": "1"})


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
