"""Which of several processes this one is, by what torchrun or accelerate says; imports no torch.

A process that is not the first has nobody to talk to: it trains what the first one tells it to, and
speaks only where it fails and the first one does not.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
import time
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from llmft.api.errors import EnvironmentFault, RecipeError

_GIVES_WAY_SECONDS = 5.0
_NO = ("", "no", "false", "0", "1")  # 1: gradient accumulation that accumulates nothing
_FOREIGN = {
    "ACCELERATE_USE_DEEPSPEED": "remove --use_deepspeed: llmft sums gradients by itself;"
    " train.shard_base in the recipe divides the base",
    "ACCELERATE_USE_FSDP": "remove --use_fsdp: llmft sums gradients by itself;"
    " train.shard_base in the recipe divides the base",
    "ACCELERATE_USE_MEGATRON_LM": "remove --use_megatron_lm: llmft sums gradients by itself",
    "ACCELERATE_MIXED_PRECISION": "give --mixed_precision no; train.bf16 in the recipe sets it",
    "ACCELERATE_DYNAMO_BACKEND": "give --dynamo_backend no; nothing is compiled",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "leave it out of accelerate's settings;"
    " train.gradient_accumulation_steps in the recipe sets it",
}
_RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
_SLURM = "SLURM_STEP_NUM_TASKS"
_OF_SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NODELIST",
            "SLURM_STEP_TASKS_PER_NODE", "SLURM_JOB_ID", "SLURM_STEP_ID")  # fmt: skip
_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Launch:
    """One process of `count`: its number from 0, and the same among those of its machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    def __str__(self) -> str:
        return f"process {self.rank} of {self.count}"


ALONE = Launch()


@dataclass(frozen=True)
class Order:
    """What the first process tells the others to train: a stage of a run.

    rows: the SHA-256 of the stage's rows, which must be the same everywhere.
    """

    run: str
    stage: str
    rows: Mapping[str, str]


def launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Return which process of a launcher's this one is; ALONE where there is no launcher.

    Some clusters set WORLD_SIZE and RANK for machines: only a launcher sets LOCAL_RANK beside them.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if not all(environment.get(name) for name in names) or environment["WORLD_SIZE"] == "1":
        return ALONE
    rank, count, local_rank = (int(environment[name]) for name in names[:3])
    return Launch(rank, count, local_rank, int(environment.get("LOCAL_WORLD_SIZE", count)))


def on_cpu() -> bool:
    """Return whether `accelerate launch --cpu` asks for the CPU though there may be a GPU."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes")


def refuse_for(command: str) -> None:
    """Raise RecipeError where several processes were started for a command that one answers."""
    here = launch()
    if here.count > 1 and command not in ("run", "--help"):
        what = f"{here.count} processes were launched, but 'llmft {command}' needs one"
        raise RecipeError("E090", what, fix="start it without torchrun, accelerate launch or srun")


def refuse_foreign(environment: Mapping[str, str] = os.environ) -> None:
    """Raise EnvironmentFault where a launcher asks for what a run would not do, or do otherwise."""
    for name, fix in _FOREIGN.items():
        value = environment.get(name, "")
        if value.lower() not in _NO:
            raise EnvironmentFault("E210", f"the launcher has set {name}={value}", fix=fix)
    if launch(environment) is ALONE and not environment.get("LOCAL_RANK"):
        for name in _MPI:
            if (count := environment.get(name, "1")) != "1":
                what = (
                    f"{count} processes were started by MPI ({name}), which llmft does not support"
                )
                raise EnvironmentFault("E210", what, fix=f"torchrun --nproc_per_node {count} ...")
        if "SLURM_PROCID" in environment and (count := environment.get(_SLURM, "1")) != "1":
            missing = ", ".join(_unsaid_by_srun(environment))
            what = f"srun has started {count} tasks ({_SLURM}), and does not say {missing}"
            fix = "srun --ntasks-per-node=1 torchrun --nproc_per_node=GPUS ... -m llmft run ..."
            raise EnvironmentFault("E210", what, fix=fix)


def join_srun(environment: MutableMapping[str, str] = os.environ) -> None:
    """Say to the libraries of srun's tasks, in torchrun's words, that they are one group.

    The first node of the step is where they meet, at a port that the job's and step's numbers give.
    Nothing is done where a launcher has spoken already, or srun started one task.
    """
    if environment.get("LOCAL_RANK") or environment.get(_SLURM, "1") == "1":
        return
    if _unsaid_by_srun(environment):
        return  # refused by `refuse_foreign`
    per_node = _tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    node = int(environment["SLURM_NODEID"])
    meeting = int(environment["SLURM_JOB_ID"]) * 7 + int(environment["SLURM_STEP_ID"])
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment[_SLURM],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(per_node[node]),
        "MASTER_ADDR": _first_node(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(20_000 + meeting % 10_000),
    }
    for name, value in found.items():
        environment.setdefault(name, value)


def _unsaid_by_srun(environment: Mapping[str, str]) -> list[str]:
    """Return which of srun's variables are not there, or are not what srun writes."""
    said = {name: environment.get(name, "") for name in _OF_SRUN}
    lists = ("SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
    wrong = [name for name, value in said.items()
             if not value or (name not in lists and not value.isdecimal())]  # fmt: skip
    nodes = len(_tasks_per_node(said["SLURM_STEP_TASKS_PER_NODE"]))
    if "SLURM_NODEID" not in wrong and int(said["SLURM_NODEID"]) >= nodes:
        wrong.append("SLURM_STEP_TASKS_PER_NODE")
    return wrong


def _first_node(nodes: str) -> str:
    """Return the first name of Slurm's list: node03 of 'node[03-05,9],other'."""
    found = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", nodes)
    return found[1] + (found[2] or "") if found else nodes


def _tasks_per_node(text: str) -> list[int]:
    """Return Slurm's numbers of tasks, node by node: 2, 2, 1 of '2(x2),1'."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in found for _ in range(int(times or 1))]


def command() -> list[str]:
    """Return the words by which a person starts llmft as it was started now, on each machine."""
    here = launch()
    if here.count == 1:
        return ["llmft"]
    if os.environ.get(_SLURM, "1") == str(here.count):
        return ["srun", f"--ntasks={here.count}", "llmft"]
    machines = here.count // here.local_count
    nodes = []
    if machines > 1:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        nodes = [f"--nnodes={machines}", "--rdzv_backend=c10d", f"--rdzv_endpoint={place}"]
    return ["torchrun", *nodes, f"--nproc_per_node={here.local_count}", "-m", "llmft"]


def remarks(*, rows_are_set: bool) -> list[str]:
    """Return what a person should know of several processes before they train.

    rows_are_set: the recipe says how many rows a step has over all processes.
    """
    here = launch()
    if here.count == 1:
        return []
    more = "" if rows_are_set else f", so a step uses {here.count} times the rows"
    return [f"{here.count} processes train together{more}"]


def restarted(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a launcher or a queue has started this job before, and starts it again."""
    counts = (environment.get(name, "") for name in _RESTARTS)
    return any(count.isdecimal() and int(count) > 0 for count in counts)


def leave(code: int) -> NoReturn:
    """End this process; where several train together, without what C++ does at exit.

    Threads that torch leaves behind may abort a process there, though all is done and written.
    """
    if launch().count == 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def give_way() -> None:
    """Wait until the launcher ends this process, or for some seconds where the first one lives on.

    What failed in all of them is told by the first one alone.
    """
    time.sleep(_GIVES_WAY_SECONDS)
