"""What a launcher says in the environment, and what is refused under one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmft.api.errors import EnvironmentFault
from llmft.cli import main
from llmft.system import launcher

SECOND = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.fixture
def as_first(monkeypatch):
    for name, value in SECOND.items():
        monkeypatch.setenv(name, "0" if name == "RANK" else value)


def test_a_process_of_a_launcher_knows_its_place():
    assert launcher.launch(SECOND) == launcher.Launch(5, 8, 1, 4)
    assert str(launcher.launch(SECOND)) == "process 5 of 8"


@pytest.mark.parametrize("missing", ["LOCAL_RANK", "MASTER_ADDR", "RANK"])
def test_a_cluster_that_sets_some_of_the_names_is_no_launcher(missing):
    some = {name: value for name, value in SECOND.items() if name != missing}
    assert launcher.launch(some) is launcher.ALONE


def test_one_process_of_a_launcher_is_alone():
    assert launcher.launch(SECOND | {"WORLD_SIZE": "1", "RANK": "0"}) is launcher.ALONE


@pytest.mark.parametrize("command", ["rank", "plan", "generate", "verify"])
def test_other_commands_refuse_several_processes(as_first, capsys, command):
    assert main.main([command, "x"]) == 2
    assert f"8 processes were launched, but 'llmft {command}' needs one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("ACCELERATE_USE_FSDP", "true", "--use_fsdp"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "--use_deepspeed"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "train.bf16"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "--dynamo_backend no"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "train.gradient_accumulation_steps"),
        ("OMPI_COMM_WORLD_SIZE", "2", "torchrun --nproc_per_node 2"),
    ],
)
def test_what_a_launcher_sets_beside_the_recipe_is_refused(name, value, fix):
    with pytest.raises(EnvironmentFault) as error:
        launcher.refuse_foreign({name: value})
    assert error.value.faults[0].code == "E210"
    assert fix in error.value.faults[0].fix


def test_what_accelerate_sets_by_default_is_no_fault():
    launcher.refuse_foreign(
        {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO",
         "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_USE_FSDP": "false",
         "OMPI_COMM_WORLD_SIZE": "1"}
    )  # fmt: skip


def test_what_is_typed_again_starts_as_many_processes(as_first):
    assert launcher.command() == [
        "torchrun", "--nnodes=2", "--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:29500",
        "--nproc_per_node=4", "-m", "llmft",
    ]  # fmt: skip


def test_a_person_starts_llmft_alone_by_its_name():
    assert launcher.command() == ["llmft"]


def test_a_launcher_is_looked_for_without_torch():
    code = "import sys, llmft.system.launcher; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
