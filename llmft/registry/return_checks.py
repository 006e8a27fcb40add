"""What a method's code gave, held against its contract; a breach names method and distribution."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from llmft import api
from llmft.api.errors import PluginError
from llmft.registry.contract import KINDS
from llmft.registry.entry_points import installed

AUTHOR = "report it to the plugin's author"


def violation(method: Any, what: str) -> PluginError:
    """Return the error that a method breaks the contract, by its distribution."""
    return PluginError("E502", f"{owner_of(method)} breaks the contract: {what}", fix=AUTHOR)


def owner_of(method: Any) -> str:
    """Return a method, or its class, as errors name it: kind, name and distribution."""
    cls: Any = method if isinstance(method, type) else type(method)
    for kind, contract in KINDS.items():
        if issubclass(cls, contract.base):
            name = f"the {kind} '{cls.method}'"
            top = cls.__module__.partition(".")[0]
            offers = [
                offer
                for offer in installed({contract.group: kind})[0]
                if offer.name == cls.method and offer.module.partition(".")[0] == top
            ]
            return f"{name} ({offers[0].distribution} {offers[0].version})" if offers else name
    return f"'{cls.__name__}'"


def model_of(method: Any, call: str, model: Any) -> Any:
    """Return the model that an adapter's `attach` or `load` gave."""
    if not callable(getattr(model, "named_parameters", None)):
        raise violation(method, f"'{call}' returns {shown(model)}, not a model")
    return model


def numbers_of(method: Any, call: str, given: Any) -> dict[str, float]:
    """Return metrics by name; each must be a finite number."""
    if not isinstance(given, Mapping):
        raise violation(method, f"{call} returns {shown(given)}, not a mapping of numbers")
    for name, value in given.items():
        if not isinstance(name, str) or not is_number(value) or not math.isfinite(value):
            raise violation(method, f"{call} gives '{name}' as {shown(value)}, not a finite number")
    return {name: float(value) for name, value in given.items()}


def row_values_of(method: Any, given: Any) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return what `evaluate` gave: every metric's number, and the rows' values where it gave them.

    The number of a metric with rows is their mean.
    """
    if not isinstance(given, Mapping):
        return numbers_of(method, "'evaluate'", given), {}
    rows = {
        name: list(value) for name, value in given.items()
        if isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value)
    }  # fmt: skip
    for name, values in rows.items():
        numbers_of(method, "'evaluate'", dict.fromkeys([name], 0.0))
        for value in values:
            numbers_of(method, "'evaluate'", {name: value})
    means = {name: math.fsum(values) / len(values) for name, values in rows.items()}
    return numbers_of(method, "'evaluate'", {**given, **means}), rows


def refusals_of(method: Any, *of: Any, ask: str = "check") -> list[api.Refusal]:
    """Return what `check` says: an adapter's of a model, a data set's of its settings.

    ask: another of its methods that yields refusals.
    """
    given: Any = getattr(method, ask)(*of)
    if not isinstance(given, Iterable):
        raise violation(method, f"'{ask}' returns {shown(given)}, and nothing to go through")
    refusals = list(given)
    for refusal in refusals:
        if (wrong := not_a_refusal(refusal)) is not None:
            raise violation(method, wrong)
    return refusals


def mixture_of(
    dataset: api.Dataset[Any], counts: Sequence[int], seed: int
) -> list[tuple[int, int]]:
    """Return how a data set puts the rows of its sources together."""
    given: Any = dataset.mixture(counts, seed)
    fine = isinstance(given, Sequence) and all(
        isinstance(one, tuple) and len(one) == 2 and all(type(part) is int for part in one)
        and 0 <= one[0] < len(counts) and 0 <= one[1] < counts[one[0]]
        for one in given
    )  # fmt: skip
    if not fine:
        what = f"'mixture' returns {shown(given)}, not (source, row) within {list(counts)}"
        raise violation(dataset, what)
    return list(given)


def not_a_refusal(given: Any) -> str | None:
    """Return why something that `check` yields is no refusal, or None where it is one."""
    if isinstance(given, tuple) and len(given) == 3:
        key, *texts = given
        parts = isinstance(key, tuple) and all(isinstance(part, str | int) for part in key)
        if parts and all(isinstance(text, str) for text in texts):
            return None
    return (
        f"'check' yields {given!r}, and not ((the key's parts), what is wrong, suggested fix),"
        " such as (('r',), 'too large', 'lower it')"
    )


def smoke_overrides_of(method: Any) -> Mapping[str, Any]:
    """Return what a method asks to be changed for a smoke run: settings that it has."""
    given: Any = method.smoke_overrides()
    if not isinstance(given, Mapping):
        raise violation(
            method, f"'smoke_overrides' returns {shown(given)}, not a mapping of settings"
        )
    if strange := sorted(set(given) - set(type(method.config).model_fields)):
        raise violation(
            method, f"'smoke_overrides' names '{strange[0]}', which is none of its settings"
        )
    return given


def groups_of(method: Any, given: Any) -> Any:
    """Return parameter groups as a method gave them, each a mapping with `params`."""
    groups = isinstance(given, Sequence) and all(
        isinstance(group, Mapping) and "params" in group for group in given
    )
    if not groups:
        what = f"'parameter_groups' returns {shown(given)}, not a list of {{'params': ...}}"
        raise violation(method, what)
    return given


def metric_of(dataset: api.Dataset[Any], name: str) -> api.Metric:
    """Return a data set's metric, refusing what is no number."""
    metric = dataset.metrics[name]

    def checked(answer: str, right: Sequence[str]) -> float:
        score = metric(answer, right)
        if not isinstance(score, Real):  # True and False are scores too
            raise violation(dataset, f"the metric '{name}' returns {shown(score)}, not a number")
        return score

    return checked


def rates_of(
    schedule: api.Schedule[Any], step: int, base: Sequence[float], span: api.TrainingSpan
) -> list[float]:
    """Return the learning rates that a schedule gives a step: finite, and not below 0."""
    given: Any
    if type(schedule).rates is api.Schedule.rates:  # which would multiply whatever it is
        factor: Any = schedule.factor(step, span)
        if not is_number(factor):
            what = f"the factor of step {step} is {shown(factor)}; a number is wanted"
            raise violation(schedule, what)
        given = [rate * factor for rate in base]
    else:
        given = schedule.rates(step, base, span)
    if not isinstance(given, Sequence) or len(given) != len(base):
        has = f"{len(given)}" if isinstance(given, Sequence) else shown(given)
        raise violation(schedule, f"'rates' gives {has} rates of {len(base)} groups in step {step}")
    for rate in given:
        if not is_number(rate) or not math.isfinite(rate) or rate < 0:
            what = f"the rate of step {step} is {shown(rate)}; a finite number from 0 up is wanted"
            raise violation(schedule, what)
    return [float(rate) for rate in given]


def bytes_of_callback(callback: api.Callback[Any], parameter: Any) -> int:
    """Return the bytes that a callback says it holds of a trained parameter."""
    given: Any = callback.state_bytes(parameter)
    if type(given) is not int or given < 0:
        what = f"'state_bytes' returns {shown(given)}, not a whole number from 0 up"
        raise violation(callback, what)
    return given


def goes_on(callback: api.Callback[Any]) -> bool:
    """Return whether a callback lets its training go on."""
    given: Any = callback.should_continue()
    if not isinstance(given, bool):
        what = f"'should_continue' returns {shown(given)}, not True or False"
        raise violation(callback, what)
    return given


def reason_of(callback: api.Callback[Any]) -> str:
    """Return why a callback ends its training, as a person reads it: in one line."""
    given: Any = callback.stop_reason()
    if not isinstance(given, str) or not given.strip():
        raise violation(callback, f"'stop_reason' returns {shown(given)}, not a reason in words")
    return " ".join(given.split())


def weights_of(
    callback: api.Callback[Any], use: Any, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the weights that a callback gives to be used, each of a trained parameter's shape."""
    import torch

    given: Any = callback.weights(use)
    if not isinstance(given, Mapping):
        raise violation(callback, f"'weights' returns {shown(given)}, not a mapping of tensors")
    for name, weight in given.items():
        if name not in parameters:
            raise violation(callback, f"'weights' gives '{name!s:.80}', which is not trained")
        if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
            raise violation(callback, f"'weights' gives '{name}' as {shown(weight)}, not a tensor")
        if weight.shape != parameters[name].shape:
            wanted = list(parameters[name].shape)
            what = f"'weights' gives '{name}' the shape {list(weight.shape)}, not {wanted}"
            raise violation(callback, what)
        if not bool(weight.isfinite().all()):
            raise violation(callback, f"'weights' gives a '{name}' that is not finite")
    return dict(given)


def callback_state_of(callback: api.Callback[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a callback's state for a checkpoint: its tensors, and what JSON can hold, by name."""
    import torch

    state: Any = callback.state()
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise violation(callback, f"'state' returns {shown(state)}, not a mapping by names")
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    plain = {name: value for name, value in state.items() if name not in tensors}
    try:
        if json.loads(json.dumps(plain, allow_nan=False)) != plain:
            what = "'state' is another once it was written as JSON, as with tuples"
            raise violation(callback, what)
    except (TypeError, ValueError, RecursionError) as error:  # the last: lists in lists
        what = f"'state' is neither tensors nor plain data: {error}"
        raise violation(callback, what) from error
    return tensors, plain


def optimizer_of(
    method: api.Optimizer[Any], groups: Sequence[Mapping[str, Any]], train: api.TrainSettings
) -> Any:
    """Return the torch optimiser that a method makes: of exactly these parameters, with rates."""
    import torch

    made: Any = method.make(groups, train)
    if not isinstance(made, torch.optim.Optimizer):
        raise violation(method, f"'make' returns {shown(made)}, not a torch.optim.Optimizer")
    wanted = {id(p) for group in groups for p in group["params"]}
    has = {id(p) for group in made.param_groups for p in group["params"]}
    if has != wanted:
        what = f"'make' returns an optimiser of {len(has & wanted)} of {len(wanted)} parameters"
        raise violation(method, what + (", and of others" if has - wanted else ""))
    if not all(is_number(group.get("lr")) for group in made.param_groups):
        raise violation(method, "a group of its optimiser has no 'lr', which the schedule sets")
    return made


def state_of(method: Any) -> dict[str, Any]:
    """Return a method's state for a checkpoint: a mapping that JSON can hold."""
    state: Any = method.state()
    if not isinstance(state, Mapping):
        raise violation(method, f"'state' returns {shown(state)}, not a mapping")
    try:
        json.dumps(state, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise violation(method, f"'state' is no JSON: {error}") from error
    return dict(state)


def score_names(metric: api.MetricFunction[Any]) -> tuple[str, ...]:
    """Return what a metric's scores are called: as the recipe names it, or as its method is."""
    given: Any = metric.values()
    several = isinstance(given, Sequence) and not isinstance(given, str)
    named = several and all(isinstance(one, str) and _VALUE_NAME.fullmatch(one) for one in given)
    if not named or len(set(given)) < len(given):
        what = f"'values' returns {given!r:.80}, not names of letters, digits and '_', each another"
        raise violation(metric, what)
    own = metric.config.name or type(metric).method
    return tuple(f"{own}_{value}" for value in given) or (own,)


_VALUE_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


def values_of_answer(metric: api.MetricFunction[Any], answer: api.ScoredAnswer) -> dict[str, float]:
    """Return what a metric gives one answer, by the scores' names."""
    where = f" ({answer.row.origin})" if answer.row.origin else ""
    return _metric_values(metric, "score", metric.score(answer), where)


def values_of_corpus(
    metric: api.MetricFunction[Any], answers: Sequence[api.ScoredAnswer]
) -> dict[str, float]:
    """Return what a metric gives all answers together, by the scores' names."""
    return _metric_values(metric, "score_corpus", metric.score_corpus(answers), "")


def _metric_values(metric: Any, call: str, given: Any, where: str) -> dict[str, float]:
    names, values = score_names(metric), list(metric.values())
    if not values:
        found = {names[0]: given}
    elif isinstance(given, Mapping) and set(given) == set(values):
        found = {name: given[value] for name, value in zip(names, values, strict=True)}
    else:
        has = f"{sorted(map(str, given))}" if isinstance(given, Mapping) else shown(given)
        raise violation(metric, f"'{call}' returns {has}, not the values {values}{where}")
    low, high = metric.value_range
    for value in found.values():
        if not isinstance(value, Real) or not math.isfinite(value):  # True and False are values too
            raise violation(metric, f"'{call}' gives {shown(value)}, not a finite number{where}")
        number = float(value)
        slack = 1e-9 * max(1.0, abs(number))
        if not low - slack <= number <= high + slack:
            what = f"'{call}' gives {shown(number)}, outside its own range from {low:g} to {high:g}"
            raise violation(metric, what + where)
    return {name: float(value) for name, value in found.items()}


def records_of(dataset: api.Dataset[Any], split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield a data set's records of a split, each with its origin."""
    given: Any = dataset.records(split)
    if not isinstance(given, Iterable):
        raise violation(dataset, f"'records' returns {shown(given)}, and no records")
    for pair in given:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise violation(dataset, f"'records' yields {shown(pair)}, not (origin, record)")
        yield pair


def pin_of(dataset: api.Dataset[Any]) -> str:
    """Return what tells a streamed data set apart from another one, and says that it is one."""
    given: Any = dataset.pin()
    if not isinstance(given, str):
        raise violation(dataset, f"'pin' returns {shown(given)}, not text")
    return f"streamed {given}"


def row_of(dataset: api.Dataset[Any], record: Mapping[str, Any], origin: str) -> api.Row:
    """Return a record as the row that a data set makes of it."""
    row: Any = dataset.row(record, origin)
    if not isinstance(row, api.Row):
        raise violation(dataset, f"{origin}: 'row' returns {shown(row)}, not a row")
    for name, types in _PARTS.items():
        if not isinstance(part := getattr(row, name, ""), types):
            raise violation(dataset, f"{origin}: the row's {name} is {shown(part)}, not text")
    return row


_PARTS: dict[str, Any] = {
    "text": str, "prompt": str | tuple, "completion": str, "chosen": str, "rejected": str,
}  # fmt: skip


def result_of(method: Any, result: Any, folder: Path) -> api.StageResult:
    """Return a stage's result; a task's rows must be in the folder, a JSON object in each line."""
    call = "run" if isinstance(method, api.Task) else "train"
    if not isinstance(result, api.StageResult):
        raise violation(method, f"'{call}' returns {shown(result)}, not a StageResult")
    if result.produces != method.produces:
        what = f"'{call}' says that it made '{result.produces}', its class '{method.produces}'"
        raise violation(method, what)
    numbers_of(method, f"'{call}'", result.metrics)
    if isinstance(method, api.Task):
        _check_rows(method, folder / "rows.jsonl")
    return result


def _check_rows(task: Any, file: Path) -> None:
    if not file.is_file():
        raise violation(task, f"'run' leaves no '{file.name}' in the stage's folder")
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                fine = isinstance(json.loads(line), dict)
            except ValueError:
                fine = False
            if not fine:
                raise violation(task, f"line {number} of its '{file.name}' is no JSON object")


def is_number(value: Any) -> bool:
    """Return whether a value is a plain number, and no truth value or tensor."""
    return isinstance(value, Real) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """Return a value, shortly, as an error shows what was given."""
    if value is None or isinstance(value, str | int | float):
        return repr(value)[:80]
    return f"a '{type(value).__name__}'"
