"""What launchers and queues say of a job: started again, by srun, asked to end by USR."""

from __future__ import annotations

import signal

import pytest

from llmft.api.errors import EnvironmentFault
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
