"""What the processes of one training add up: alone, a process finds everything as it is.

Adapters are small, so gradients are summed whole after an update's passes; nothing is asked of how
many passes each process takes.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from llmft.api.errors import EnvironmentFault, StageError
from llmft.system import heartbeat
from llmft.system.heartbeat import Heartbeat
from llmft.system.launcher import Launch, on_cpu
from llmft.system.machine import device

log = logging.getLogger("llmft")

Sums = dict[str, tuple[float, float]]
"""Each metric's sum, and the weight that it is divided by."""
T = TypeVar("T")
P = TypeVar("P")

# The others wait while the first one scores or samples alone. One that has died is not waited for:
# its connections close, or the launcher ends all. One that hangs shows no sign of life.
_WAITS = timedelta(days=7)


@contextmanager
def joined(here: Launch) -> Iterator[None]:
    """Let the processes that a launcher started find each other, for the block.

    Raises EnvironmentFault where a machine has fewer GPUs than processes.
    """
    on_gpu = torch.cuda.is_available() and not on_cpu()
    gpus = torch.cuda.device_count() if on_gpu else here.local_count
    if gpus < here.local_count:
        raise EnvironmentFault(
            "E210",
            f"{here.local_count} processes were launched on a machine with {gpus} GPUs",
            fix="launch one process for each GPU",
        )
    # Numbers that are counted stay on the CPU; gradients are where the model is.
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    if not dist.is_initialized():
        seconds = heartbeat.limit()
        with _in_touch():
            _join(here, backend, seconds)
    device()  # which each process has for itself
    try:
        yield
        with suppress(RuntimeError):  # one is gone already: all that was to be done is done
            dist.barrier()
    finally:
        if _joined is not None:  # the store ends with the first process, and C++ would say so
            _joined.heartbeat.stop()
    dist.destroy_process_group()


@dataclass
class _Joined:
    """What a process has that others train with: its signs of life, and a group without haste."""

    heartbeat: Heartbeat
    patient: Any


_joined: _Joined | None = None


def _join(here: Launch, backend: str, seconds: float) -> None:
    global _joined
    wait = timedelta(seconds=seconds)
    store, rank, size = next(rendezvous("env://", timeout=wait))
    signs = Heartbeat(store.clone(), here, seconds)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)
    _joined = _Joined(signs, dist.new_group(timeout=_WAITS, backend="gloo"))
    signs.start()


@contextmanager
def _in_touch(*, patient: bool = False) -> Iterator[None]:
    """Say in our words that a process is gone: the others cannot go on without it.

    patient: wait however long it takes, as for what the first process does alone.
    """
    signs = _joined.heartbeat if _joined else None
    try:
        with signs.meeting(patient=patient) if signs else nullcontext():
            yield
    except RuntimeError as error:  # dist.DistError is one, and gloo raises plain ones
        log.info("between processes: %s", error)
        if signs and "imed out" in str(error) and (who := signs.missing()):
            raise heartbeat.stalled(who) from error
        raise StageError(
            "E306",
            "another process of the run has ended, or cannot be reached",
            fix="read the message of the one that ended first; then continue with --resume",
        ) from error


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def count() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if _several() else 1


def rank() -> int:
    """Return which of them this one is, from 0."""
    return dist.get_rank() if _several() else 0


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes."""
    if not _several():
        return tensor
    whole = tensor.detach().clone()
    with _in_touch():
        dist.all_reduce(whole)
    return whole


def on_rank_zero(make: Callable[[], T]) -> T:
    """Return what `make` gives in the first process; the others wait, and do not call it."""
    if not _several():
        return make()
    box: list[Any] = [make() if rank() == 0 else None]
    with _in_touch(patient=True):
        dist.broadcast_object_list(box, 0, group=_joined.patient if _joined else None)
    made: T = box[0]
    return made


def all_gather(value: T) -> list[T]:
    """Return the value of each process, in their order."""
    if not _several():
        return [value]
    every: list[Any] = [None] * count()
    with _in_touch():
        dist.all_gather_object(every, value)
    return every


_in_step = False
_gathered = 0


@contextmanager
def in_step(asked: bool) -> Iterator[None]:
    """Have all processes compute the same passes of a model for the block, where that is asked.

    A model of which each has a share needs it: a layer comes from all of them.
    """
    global _in_step
    before, _in_step = _in_step, asked and _several()
    try:
        yield
    finally:
        _in_step = before


def keeps_step() -> bool:
    """Return whether all processes have to compute the same passes just now."""
    return _in_step


def refuse_out_of_step() -> None:
    """Raise StageError where processes have gathered other things, or in another order."""
    if _in_step and len(set(all_gather(_gathered))) > 1:
        raise StageError(
            "E309",
            "the processes did not compute the same layers in the same order, so that the weights"
            " which they gave each other do not fit together; nothing was updated",
            fix="remove train.shard_base, and report it with the recipe",
        )


class Halted(Exception):
    """Work that was dealt out was given up, because one of the processes was asked to stop."""


_dealing: list[Callable[[], bool]] = []


@contextmanager
def dealing_out(stopping: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Let `dealt` share work among the processes, all of which enter the block and call it alike.

    stopping: asked between two parts in each process; where it says so in one, all are Halted.
    """
    _dealing.append(stopping)
    try:
        yield
    finally:
        _dealing.pop()


def deals() -> bool:
    """Return whether work is shared just now."""
    return bool(_dealing) and _several()


def dealt(
    parts: Sequence[P],
    compute: Callable[[P], T],
    on_part: Callable[[int], None] = lambda done: None,
    *,
    alike: bool = False,
) -> list[T]:
    """Return what `compute` gives for each part, in order.

    Within `dealing_out` each process computes its share, and all have all results: part k is that
    of process k modulo their number, computed as one process would compute it. on_part: told how
    many parts are done, all processes counted. alike: every part takes equally many passes of the
    model; where the processes have to keep step, all compute all parts otherwise.
    Raises Halted in every process where one of them was asked to stop.
    """
    number, of = (rank(), count()) if deals() and (alike or not _in_step) else (0, 1)
    own, stopped = list[T](), False
    for first in range(0, len(parts), of):
        place = first + number
        if of > 1 and (stopped := _stopping(place < len(parts))):
            break
        if place < len(parts):
            own.append(compute(parts[place]))
            on_part(min(first + of, len(parts)))
        elif _in_step:
            compute(parts[-1])
    refuse_out_of_step()
    if of == 1:
        return own
    shares = all_gather((stopped, own))
    if any(halted for halted, _ in shares):
        raise Halted
    return [shares[place % of][1][place // of] for place in range(len(parts))]


def _stopping(computes: bool) -> bool:
    """Return whether dealt work is to be given up; where processes keep step, they agree on it.

    computes: whether this process has a part left.
    """
    if _in_step:
        return bool(all_reduce_max(int(_dealing[-1]())))
    return computes and _dealing[-1]()


def all_reduce_max(number: int) -> int:
    """Return the largest number that a process gives: a signal that any of them has got."""
    if not _several():
        return number
    largest = torch.tensor(number)
    with _in_touch():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def merged(sums: Mapping[str, tuple[float, float]]) -> Sums:
    """Return metrics as (sum, weight) over all processes; one may have none of them."""
    if not _several():
        return dict(sums)
    whole: Sums = {}
    for one in all_gather(dict(sums)):
        add(whole, one)
    return whole


def add(to: Sums, sums: Mapping[str, tuple[float, float]]) -> None:
    """Add each metric's (sum, weight) to what there is of it."""
    for name, (value, weight) in sums.items():
        before = to.get(name, (0.0, 0.0))
        to[name] = (before[0] + value, before[1] + weight)


def all_reduce_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Give every process the sum of all processes' gradients; one may have computed none."""
    if not _several():
        return

    def sum_in_place(whole: torch.Tensor) -> None:
        with _in_touch():
            dist.all_reduce(whole)

    sum_gradients(parameters, sum_in_place)


def sum_gradients(
    parameters: Sequence[torch.nn.Parameter], sum_in_place: Callable[[torch.Tensor], object]
) -> None:
    """Let the gradients of a type be summed as one tensor, and take them back from it."""
    by_kind: dict[torch.dtype, list[torch.Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        by_kind[parameter.grad.dtype].append(parameter.grad)
    for gradients in by_kind.values():
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        sum_in_place(whole)
        pieces = torch.split(whole, [gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))


@dataclass
class Coming:
    """What other processes have sent and is on its way into a tensor."""

    work: Any

    def wait(self) -> None:
        """Have what comes after find all of them there; a GPU's host does not wait."""
        if self.work is not None:
            with _in_touch():
                self.work.wait()


def all_gather_bytes(whole: torch.Tensor, share: torch.Tensor, name: int) -> Coming:
    """Begin to put the shares of all processes into one tensor, in their order.

    whole: uint8, as long as all shares together. share: of the same length in each process.
    name: of what is gathered, by which `refuse_out_of_step` compares the processes.
    """
    global _gathered
    _gathered = hash((_gathered, name))
    with _in_touch():
        return Coming(_ALL_GATHER(whole, share, async_op=True))


def broadcast_begun(tensor: torch.Tensor, source: int, name: int) -> Coming:
    """Begin to put one process's numbers into a tensor of all. name: as for all_gather_bytes."""
    global _gathered
    _gathered = hash((_gathered, source, name))
    with _in_touch():
        return Coming(dist.broadcast(tensor, source, async_op=True))


def reduce_begun(tensor: torch.Tensor, target: int) -> Coming:
    """Begin to put the sum of a tensor over all processes into that of one of them."""
    with _in_touch():
        return Coming(dist.reduce(tensor, target, async_op=True))


def handed_to_first(value: T, source: int) -> T:
    """Return in the first process what another one gives; elsewhere, what was given there."""
    box: list[Any] = [value]
    with _in_touch():
        if rank() == source:
            dist.send_object_list(box, 0, device=torch.device("cpu"))
        elif rank() == 0:
            dist.recv_object_list(box, source, device=torch.device("cpu"))
    made: T = box[0]
    return made


# Its name since torch 2.13, where the older one warns.
_ALL_GATHER: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def broadcast_parameters(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Give every process the first one's weights."""
    if _several():
        with _in_touch():
            for parameter in parameters:
                dist.broadcast(parameter.data, 0)
