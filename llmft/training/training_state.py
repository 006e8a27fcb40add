"""What training would need to go on as if it had never stopped, as tensors and plain data.

Restored in place and strictly: every trainable tensor by name, shape and dtype. The rate and the
optimiser's settings are not part of it: they follow from the recipe and the step.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from llmft.api import Optimizer
from llmft.api.errors import CheckpointError, StageError
from llmft.modeling.sharded_layers import is_here, owner_of
from llmft.registry.return_checks import violation
from llmft.system import distributed
from llmft.training.learning_rates import LearningRates
from llmft.training.modes import in_use, switch_of

Tensors = dict[str, torch.Tensor]


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that require grad, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


TRAINED = "trained/"
"""The weights that are trained, where those that are used are others (see `modes`)."""


def capture(
    model: Any,
    optimizer: torch.optim.Optimizer,
    method: Optimizer[Any] | None = None,
    given: Mapping[str, torch.Tensor] | None = None,
) -> tuple[Tensors, dict[str, Any]]:
    """Return weights, optimiser state and generators, on the CPU, and their plain data.

    What is on the CPU already is not copied: write it before the next step changes it.
    Weights are the same in all processes; generators are of each. All processes take part.
    method: what made the optimiser; its groups' state is kept too. given: weights that are used in
    place of those that are trained, by name: both are kept.
    Raises StageError where a weight is not finite: such a state is never published. Raises
    PluginError where a state is neither tensors nor plain data.
    """
    (tensors, facts), *others = distributed.all_gather(random_state())
    if others:
        facts["others"] = [theirs for _, theirs in others]
    for number, (states, _) in enumerate(others, 1):
        tensors |= {f"process/{number}/{name}": state for name, state in states.items()}
    numbers: dict[str, dict[str, Any]] = {}
    used = _used_weights(model, optimizer, given or {})
    _refuse_not_finite(model)
    seen: set[int] = set()  # bitsandbytes' states have tables in common; a file takes none twice
    for name, parameter in trainable(model).items():
        own, plain = Tensors(), dict[str, Any]()
        if is_here(parameter):
            own, plain = _of_a_weight(name, parameter, used.get(name), optimizer, seen)
        if owner := owner_of(parameter):
            own, plain = distributed.handed_to_first((own, plain), owner)
        tensors |= own
        numbers[name] = plain
    facts["optimizer"] = numbers
    if method is not None and method.group_state:
        facts["optimizer_groups"] = [
            {key: group[key] for key in method.group_state if key in group}
            for group in optimizer.param_groups
        ]
    _refuse_odd_state(method, [numbers, facts.get("optimizer_groups")])
    return tensors, facts


def _refuse_not_finite(model: Any) -> None:
    """Raise StageError in all processes where a weight of one of them is not finite."""
    weights = {name: p for name, p in trainable(model).items() if is_here(p)}
    broken = next((name for name, p in weights.items() if not torch.isfinite(p).all()), "")
    if name := next(filter(None, distributed.all_gather(broken)), ""):
        raise StageError(
            "E301",
            f"the weight '{name}' is not finite; nothing saved",
            fix="lower train.learning_rate, and continue from the previous checkpoint",
        )


def _of_a_weight(
    name: str,
    parameter: torch.nn.Parameter,
    used: torch.Tensor | None,
    optimizer: torch.optim.Optimizer,
    seen: set[int],
) -> tuple[Tensors, dict[str, Any]]:
    """Return a weight and the optimiser's state of it, and what of that are plain numbers.

    used: the weight that is used in its place. seen: where the tensors so far are in memory.
    """
    tensors, numbers = Tensors(), dict[str, Any]()
    tensors[f"model/{name}"] = _on_cpu(parameter if used is None else used)
    if used is not None:
        tensors[f"{TRAINED}{name}"] = _on_cpu(parameter)
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, torch.Tensor):
            for part, tensor in _parts(value).items():
                kept = _on_cpu(tensor)
                place = kept.data_ptr()
                tensors[f"optimizer/{name}/{key}{part}"] = kept.clone() if place in seen else kept
                seen.add(place)
        else:
            numbers[key] = value
    return tensors, numbers


def _parts(state: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """Return the plain tensors of which a state consists, by what is added to its name.

    It is several where its class holds numbers in fewer bits, with their scales, as torchao's.
    """
    if not is_traceable_wrapper_subclass(state):
        return {"": state}
    names, _ = state.__tensor_flatten__()
    return {f":{name}": getattr(state, name) for name in names}


def _used_weights(
    model: Any, optimizer: torch.optim.Optimizer, given: Mapping[str, torch.Tensor]
) -> Tensors:
    """Return the weights that are to be used where others are trained; {} where they are these."""
    parameters = trainable(model)
    if switch_of(optimizer, "eval") is None:
        return {name: weight.to(parameters[name].dtype) for name, weight in given.items()}
    parameters = {name: p for name, p in parameters.items() if is_here(p)}
    with in_use(optimizer, parameters, given):
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def _refuse_odd_state(method: Any, state: Any) -> None:
    try:
        json.dumps(state)
    except (TypeError, ValueError) as error:
        what = f"its state is neither tensors nor plain data: {error}"
        raise (violation(method, what) if method else TypeError(what)) from error


def restore(
    model: Any,
    optimizer: torch.optim.Optimizer,
    rates: LearningRates,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    facts: Mapping[str, Any],
    method: Optimizer[Any] | None = None,
) -> None:
    """Put back what `capture` returned after so many steps. method: what made the optimiser.

    Raises CheckpointError where names, shapes or dtypes are not those of the model.
    """
    parameters = restore_weights(model, tensors)
    _start_states(optimizer)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if is_here(parameter):
                optimizer.state[parameter].update(facts["optimizer"][name])
        for key, tensor in tensors.items():
            kind, _, rest = key.partition("/")
            if kind == "optimizer":
                name, _, entry = rest.rpartition("/")
                if is_here(parameters[name]):
                    _put(optimizer, parameters[name], entry, tensor)
            elif f"{kind}/" == TRAINED and is_here(parameters[rest]):
                parameters[rest].copy_(tensor)
    saved = facts.get("optimizer_groups", []) if method is not None else []
    for group, state in zip(optimizer.param_groups if saved else (), saved, strict=True):
        group.update(state)
    rates.restore(step, facts)
    number, others = distributed.rank(), facts.get("others", ())
    if number == 0:
        set_random_state(tensors, facts)
    elif number <= len(others):  # one that was not there before keeps the state it is seeded with
        mine = f"process/{number}/"
        own = {name.removeprefix(mine): t for name, t in tensors.items() if name.startswith(mine)}
        set_random_state(own, others[number - 1])


def restore_weights(
    model: Any, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.nn.Parameter]:
    """Put back the weights that `capture` returned, and return the parameters by name.

    Raises CheckpointError where names, shapes or dtypes are not those of the model.
    """
    parameters = trainable(model)
    saved = {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
    if misfits := list(_misfits(parameters, saved)):
        raise CheckpointError(
            "E405",
            f"the checkpoint does not fit the model: {'; '.join(misfits[:3])}"
            + (f" and {len(misfits) - 3} more" if misfits[3:] else ""),
            fix="resume with the recipe and the model that the run started with",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            if is_here(parameter):
                parameter.copy_(saved[name])
    return parameters


def random_state() -> tuple[Tensors, dict[str, Any]]:
    """Return the state of Python's, numpy's and torch's generators."""
    import numpy

    version, numbers, gauss = random.getstate()
    state: Any = numpy.random.get_state(legacy=True)
    kind, keys, *rest = state
    tensors = {"rng/torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states = torch.cuda.get_rng_state_all()
        tensors |= {f"rng/cuda/{number}": state for number, state in enumerate(states)}
    facts = {"python": [version, list(numbers), gauss], "numpy": [kind, keys.tolist(), *rest]}
    return tensors, {"rng": facts}


def set_random_state(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned."""
    import numpy

    version, numbers, gauss = facts["rng"]["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = facts["rng"]["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(tensors["rng/torch"])
    for number in range(torch.cuda.device_count()):
        if f"rng/cuda/{number}" in tensors:
            torch.cuda.set_rng_state(tensors[f"rng/cuda/{number}"], number)


def size_of(model: Any) -> int:
    """Return about how many bytes a checkpoint takes: weights, and twice as much beside them."""
    return sum(3 * p.numel() * p.element_size() for p in trainable(model).values())


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()


def _misfits(
    wanted: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    yield from (f"'{name}' is missing" for name in wanted.keys() - saved.keys())
    yield from (f"'{name}' is unexpected" for name in saved.keys() - wanted.keys())
    for name in wanted.keys() & saved.keys():
        ours, theirs = wanted[name], saved[name]
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            yield f"'{name}' is {_kind(theirs)}, not {_kind(ours)}"


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _start_states(optimizer: Any) -> None:
    """Let an optimiser set its state up first: in memory of its own (paged), or by own classes."""
    start = getattr(optimizer, "init_state", None)
    if start is None:
        return
    for g, group in enumerate(optimizer.param_groups):
        for p, parameter in enumerate(group["params"]):
            start(group, parameter, g, p)


def _put(
    optimizer: torch.optim.Optimizer, parameter: torch.Tensor, key: str, value: torch.Tensor
) -> None:
    state = optimizer.state[parameter]
    whole, _, part = key.partition(":")
    if part and whole in state:
        getattr(state[whole], part).copy_(value)
        return
    if key in state:
        state[key].copy_(value)
        return
    # Adam counts steps on the CPU, unless it is fused.
    stays = key == "step" and not optimizer.defaults.get("fused")
    state[key] = value.clone() if stays else value.to(parameter.device, copy=True)
