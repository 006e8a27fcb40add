"""The sources of a data block: the data sets that it puts together, and what each is called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, count
from pathlib import PurePath

from llmft.api import DatasetConfig
from llmft.recipes.methods import nested_methods
from llmft.recipes.tree import KeyPath

_ENDINGS = re.compile(r"(\.(jsonl|json|csv|parquet|txt))?(\.(gz|zst))?$")
_LONGEST = 40


Block = tuple[KeyPath, DatasetConfig]


def sources_of(data: DatasetConfig, path: KeyPath = ("data",)) -> list[Block]:
    """Return the settings of each source of a data block, with its path; none where it is one."""
    return [
        (where, config) for where, kind, config in nested_methods(data, path) if kind == "dataset"
    ]


def data_blocks(data: DatasetConfig, path: KeyPath = ("data",)) -> list[Block]:
    """Return a data block's sources, or the block itself where it has none, each with its path."""
    return sources_of(data, path) or [(path, data)]


def source_names(data: DatasetConfig) -> list[str]:
    """Return what the sources of a data block are called, in order: each by a name of its own.

    Two that would be called the same are told apart by a number.
    """
    configs = [config for _, config in sources_of(data)]
    found: list[str] = []
    taken = {config.name for config in configs if config.name}
    for config in configs:
        usual = _usual_name(config)
        tries = chain([usual], (f"{usual}_{number}" for number in count(2)))
        found.append(config.name or next(one for one in tries if one not in taken))
        taken.add(found[-1])
    return found


def metric_of_source(metric: str, names: Sequence[str]) -> str:
    """Return the metric that the score of one source is of: `loss` of `alpaca_loss`."""
    for name in sorted(names, key=len, reverse=True):
        if metric.startswith(f"{name}_"):
            return metric.removeprefix(f"{name}_")
    return metric


def scored_as(source: str, metric: str) -> str:
    """Return what the score of one source is called, as Trainer calls it: `alpaca_loss`."""
    return f"{source}_{metric}"


def _usual_name(config: DatasetConfig) -> str:
    files = getattr(config, "data_files", None) or {}
    path = getattr(config, "path", None) or next(iter(files.values()), "")
    name = _ENDINGS.sub("", PurePath(path.removeprefix("embedded:")).name)
    name = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:_LONGEST]
    return name or getattr(config, "method", "rows")
