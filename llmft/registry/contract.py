"""What a method's class must be, checked as soon as its plugin is loaded and without a model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from llmft import api
from llmft.api.kinds import Kind
from llmft.registry.hook_manager import ContractViolation, alone, implements


@dataclass(frozen=True, slots=True)
class KindContract:
    """How a kind of method enters: by which entry-point group and hook, as which classes."""

    group: str
    hook: str
    base: type[Any]
    config: type[api.Settings]


KINDS: dict[Kind, KindContract] = {
    "adapter": KindContract("llmft.adapters", "llmft_adapters", api.Adapter, api.AdapterConfig),
    "alignment": KindContract(
        "llmft.alignments", "llmft_alignments", api.Alignment, api.AlignmentConfig
    ),
    "task": KindContract("llmft.tasks", "llmft_tasks", api.Task, api.TaskConfig),
    "reward": KindContract("llmft.rewards", "llmft_rewards", api.RewardFunction, api.RewardConfig),
    "dataset": KindContract("llmft.datasets", "llmft_datasets", api.Dataset, api.DatasetConfig),
    "optimizer": KindContract(
        "llmft.optimizers", "llmft_optimizers", api.Optimizer, api.OptimizerConfig
    ),
    "schedule": KindContract(
        "llmft.schedules", "llmft_schedules", api.Schedule, api.ScheduleConfig
    ),
    "callback": KindContract(
        "llmft.callbacks", "llmft_callbacks", api.Callback, api.CallbackConfig
    ),
    "metric": KindContract("llmft.metrics", "llmft_metrics", api.MetricFunction, api.MetricConfig),
    "tracker": KindContract("llmft.trackers", "llmft_trackers", api.Tracker, api.TrackerConfig),
}


def class_of(kind: Kind, name: str, plugin: object) -> type[Any]:
    """Return the class that a plugin offers as this method, checked against its kind's contract."""
    contract = KINDS[kind]
    manager = alone(plugin)
    if not implements(plugin, manager, contract.hook):
        raise ContractViolation(f"it implements no hook '{contract.hook}'")
    classes = []
    for answer in getattr(manager.hook, contract.hook)():
        if not isinstance(answer, list | tuple):
            raise ContractViolation(
                f"hook '{contract.hook}' returns {_shown(answer)}, not a list of classes"
            )
        for item in answer:
            if not (inspect.isclass(item) and issubclass(item, contract.base)):
                raise ContractViolation(
                    f"hook '{contract.hook}' returns {_shown(item)},"
                    f" not a class derived from 'llmft.api.{contract.base.__name__}'"
                )
            classes.append(item)
    named = [cls for cls in classes if getattr(cls, "method", None) == name]
    if not named:
        have = ", ".join(repr(getattr(cls, "method", None)) for cls in classes) or "no class at all"
        raise ContractViolation(
            f"no class that it returns has the method '{name}' (it returns: {have})"
        )
    if len(named) > 1:
        raise ContractViolation(f"{len(named)} classes that it returns have the method '{name}'")
    check_class(kind, named[0])
    return named[0]


def check_class(kind: Kind, cls: type[Any]) -> None:
    """Raise Breach unless a class declares all that its kind must, in the types that it must."""
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise ContractViolation(f"class '{cls.__name__}' lacks {_quoted(missing)}")
    _check_config(cls, KINDS[kind].config)
    _check_signatures(cls, KINDS[kind].base)
    for base in cls.__mro__:
        for flag, annotation in getattr(base, "__annotations__", {}).items():
            declared = base.__module__ == api.__name__ and annotation == "ClassVar[bool]"
            if declared and not isinstance(value := getattr(cls, flag), bool):
                raise ContractViolation(
                    f"class '{cls.__name__}': '{flag}' is {value!r}, not True or False"
                )
    if kind in ("alignment", "task", "dataset"):
        rows = getattr(cls, "rows", None)
        kinds = get_args(api.RowKind)
        some = bool(rows) or kind == "task"
        if not isinstance(rows, tuple) or not some or not set(rows) <= set(kinds):
            raise ContractViolation(
                f"class '{cls.__name__}': 'rows' must be a tuple of {_quoted(kinds)}"
            )
    if kind == "metric":
        _check_metric(cls)
    if kind == "schedule" and (cls.factor, cls.rates) == (api.Schedule.factor, api.Schedule.rates):
        raise ContractViolation(f"class '{cls.__name__}' lacks 'factor', or 'rates'")
    if kind == "callback" and cls.gives_weights == (cls.weights is api.Callback.weights):
        has = "no 'weights'" if cls.gives_weights else "'weights'"
        raise ContractViolation(
            f"class '{cls.__name__}' has {has}, and 'gives_weights' is {cls.gives_weights}"
        )
    makes = getattr(cls, "produces", None)
    if kind in ("alignment", "task") and not (isinstance(makes, str) and makes):
        raise ContractViolation(f"class '{cls.__name__}': 'produces' must name what comes out")


def _check_metric(cls: type[api.MetricFunction[Any]]) -> None:
    alone, together = cls.score is not api.MetricFunction.score, cls.is_of_corpus()
    if alone == together:
        which = "both 'score' and 'score_corpus'" if alone else "neither 'score' nor 'score_corpus'"
        raise ContractViolation(f"class '{cls.__name__}' has {which}; one of them is wanted")
    bounds = cls.value_range
    pair = isinstance(bounds, tuple) and len(bounds) == 2
    if not (pair and all(type(end) in (int, float) for end in bounds) and bounds[0] < bounds[1]):
        raise ContractViolation(
            f"class '{cls.__name__}': 'value_range' is {bounds!r}, not a pair of numbers"
        )


def _check_signatures(cls: type[Any], base: type[Any]) -> None:
    """Raise where a method cannot be called as the base class's own can be."""
    for name, known in inspect.getmembers_static(base, inspect.isfunction):
        own = inspect.getattr_static(cls, name)
        if name.startswith("_") or own is known:
            continue
        if not callable(getattr(cls, name)):
            raise ContractViolation(f"class '{cls.__name__}': '{name}' is no method")
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        wanted = [
            p
            for p in inspect.signature(known).parameters.values()
            if p.default is p.empty and p.kind not in variable
        ]
        given = [None for p in wanted if p.kind is not p.KEYWORD_ONLY]
        named = {p.name: None for p in wanted if p.kind is p.KEYWORD_ONLY}
        # `self` comes with what binds to an object, also of functools' or Cython's making.
        bound = hasattr(own, "__get__") and not isinstance(own, staticmethod | classmethod)
        try:
            signature = inspect.signature(getattr(cls, name))
            signature.bind(*given[not bound :], **named)
        except TypeError as error:
            wants = inspect.signature(known)
            raise ContractViolation(
                f"class '{cls.__name__}': '{name}' is called as {name}{wants}, and takes"
                f" {signature}: {error}"
            ) from error
        except ValueError:  # of what is written in C nothing is known
            continue


def _check_config(cls: type[Any], base: type[api.Settings]) -> None:
    config = getattr(cls, "Config", None)
    if config is None:
        raise ContractViolation(f"class '{cls.__name__}' has no 'Config'")
    if not (inspect.isclass(config) and issubclass(config, base)):
        raise ContractViolation(
            f"'{cls.__name__}.Config' is not derived from 'llmft.api.{base.__name__}'"
        )
    if not config.model_config.get("frozen"):
        raise ContractViolation(
            f"'{cls.__name__}.Config' can be changed after loading; keep frozen=True"
        )
    if config.model_config.get("extra") != "forbid":
        raise ContractViolation(
            f"'{cls.__name__}.Config' accepts unknown keys; keep extra='forbid'"
        )


def _shown(thing: object) -> str:
    if inspect.isclass(thing):
        return f"the class '{thing.__name__}'"
    return f"a '{type(thing).__name__}'"


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
