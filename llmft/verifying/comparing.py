"""Two runs of one recipe held against each other, bit for bit."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from llmft.engine.stage_preview import PAGE
from llmft.runs import artifacts
from llmft.system.fsio import MANIFEST, sha256
from llmft.system.plain_files import read_text
from llmft.training.checkpoints import FOLDER, STATE, TENSORS

Order = Mapping[str, Mapping[int, set[str]]]


@dataclass(frozen=True)
class Finding:
    """One thing that was compared in a stage; difference: '' where it is the same to the bit."""

    stage: str
    what: str
    compared: str
    difference: str = ""


def compare(straight: Path, resumed: Path, orders: tuple[Order, Order]) -> list[Finding]:
    """Return what is the same and what is not in every stage of two run folders.

    orders: the batches of each step, as `row_order` reads them.
    """
    found: list[Finding] = []
    for folder in sorted((straight / "stages").iterdir(), key=_began):
        found += _stage(folder, resumed / "stages" / folder.name)
        found.append(_rows(folder.name, *(order.get(folder.name, {}) for order in orders)))
    return found


def compare_results(
    run: Path, again: Path, rows: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> tuple[list[Finding], float]:
    """Return what two finished runs of one recipe have in common, by what they publish.

    Also the largest difference of a loss or a score: of its size where that is above 1.
    rows: the hashes of each stage's rows, as the runs' locks have them.
    """
    found: list[Finding] = []
    gap = 0.0
    for ours in sorted((run / "stages").iterdir(), key=_began):
        name, theirs = ours.name, again / "stages" / ours.name
        mine, other = rows[0].get(name, {}), rows[1].get(name, {})
        found.append(_same_keys(name, "rows", "sets of rows", mine, other))
        for what, unit, read in (
            ("losses", "logged steps", _losses),
            ("scores", "scores", _scores),
        ):
            pair = read(ours), read(theirs)
            if not pair[0]:  # the run did not note them
                continue
            found.append(_same_keys(name, what, unit, *pair))
            gap = max(gap, _apart(*pair))
        tensors = _published(ours), _published(theirs)
        if any(tensors):
            numbers = sum(tensor.numel() for tensor in tensors[0].values())
            compared = f"{len(tensors[0])} tensors, {numbers:,} numbers"
            found.append(Finding(name, "weights", compared, _tensor_difference(*tensors)))
        found.append(_same_keys(name, "answers", "files", *map(_answers, (ours, theirs))))
    return found, gap


def _losses(stage: Path) -> dict[str, float]:
    """Return the logged training losses, by step."""
    try:
        lines = read_text(stage / "metrics.jsonl").splitlines()
    except FileNotFoundError:  # a task, or a run without the tracker jsonl
        return {}
    entries = [json.loads(line) for line in lines]
    return {
        f"step {entry['step']}": entry["loss"]
        for entry in entries
        if entry["phase"] == "train" and isinstance(entry.get("loss"), int | float)
    }


def _apart(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    if ours.keys() != theirs.keys():
        return inf
    gaps = (abs(ours[key] - theirs[key]) / max(1.0, abs(ours[key])) for key in ours)
    return max(gaps, default=0.0)


def _answers(stage: Path) -> dict[str, str]:
    path = stage / "samples.jsonl"
    return {path.name: sha256(path)} if path.is_file() else {}


def _stage(ours: Path, theirs: Path) -> Iterator[Finding]:
    name = ours.name
    a, b = _tensors(ours), _tensors(theirs)
    for what, prefix in (
        ("weights", ("model/", "adapter/", "trained/")),
        ("optimizer state", ("optimizer/",)),
        ("plugins", ("callback/",)),
        ("random generators", ("rng/",)),
    ):
        mine = {key: value for key, value in a.items() if key.startswith(prefix)}
        other = {key: value for key, value in b.items() if key.startswith(prefix)}
        if mine or other:
            numbers = sum(tensor.numel() for tensor in mine.values())
            compared = f"{len(mine)} tensors, {numbers:,} numbers"
            yield Finding(name, what, compared, _tensor_difference(mine, other))
    facts, other_facts = _facts(ours), _facts(theirs)
    if facts or other_facts:
        kinds = ", ".join(facts.get("rng", {}))
        difference = "" if facts.get("rng") == other_facts.get("rng") else "another state"
        yield Finding(name, "random generators", f"{kinds} after the last step", difference)
        losses = [f.get("report", {}).get("losses", []) for f in (facts, other_facts)]
        yield Finding(name, "losses", f"{len(losses[0])} steps", _first_unlike(*losses))
    yield _same_keys(name, "scores", "numbers", _scores(ours), _scores(theirs))
    yield _same_keys(name, "files", "files", _files(ours), _files(theirs))


def _same_keys(
    stage: str, what: str, unit: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Finding:
    unit = unit.removesuffix("s") if len(ours) == 1 else unit
    unlike = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    return Finding(stage, what, f"{len(ours)} {unit}", ", ".join(unlike))


def _began(stage: Path) -> float:
    return stage.stat().st_ctime


def _tensors(stage: Path) -> dict[str, Any]:
    """Return the tensors of the newest checkpoint, and those of the published adapter."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    if newest := _newest(stage):
        tensors |= load_file(newest / TENSORS)
    return tensors | _published(stage)


def _published(stage: Path) -> dict[str, Any]:
    """Return the tensors of the published adapter."""
    from safetensors.torch import load_file

    return {
        f"adapter/{path.name}/{key}": tensor
        for path in sorted((stage / artifacts.ADAPTER).rglob("*.safetensors"))
        for key, tensor in load_file(path).items()
    }


def _newest(stage: Path) -> Path | None:
    steps = [path for path in (stage / FOLDER).glob("step-*") if path.name[5:].isdecimal()]
    return max(steps, key=lambda path: int(path.name[5:]), default=None)


def _facts(stage: Path) -> dict[str, Any]:
    newest = _newest(stage)
    facts: dict[str, Any] = (
        json.loads((newest / STATE).read_text("utf-8"))["facts"] if newest else {}
    )
    return facts


def _scores(stage: Path) -> dict[str, float]:
    result = json.loads((stage / artifacts.RESULT).read_text("utf-8"))
    judged = ("before", "after")
    return {f"{key} {when}": v for when in judged for key, v in result.get(when, {}).items()}


def _files(stage: Path) -> dict[str, str]:
    """Return what a stage wrote, hashed, but for what tells of times and of the run's id."""
    told = (artifacts.RESULT, MANIFEST, "metrics.jsonl", "README.md")
    return {
        str(path.relative_to(stage)): _digest(path)
        for path in sorted(stage.rglob("*"))
        if path.is_file() and path.name not in told and FOLDER not in path.relative_to(stage).parts
    }


def _digest(path: Path) -> str:
    """Return a file's hash, or what counts of it.

    In PEFT's settings, sets are lists in any order. A page names the run's own folder, where its
    rows come from an earlier stage.
    """
    if path.name == PAGE:
        folder = html.escape(str(path.parents[2]))
        return path.read_text("utf-8").replace(folder, "")
    if path.name != "adapter_config.json":
        return sha256(path)
    settings = json.loads(path.read_text("utf-8"))
    return json.dumps({k: sorted(v) if isinstance(v, list) else v for k, v in settings.items()})


def _tensor_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    import torch

    if ours.keys() != theirs.keys():
        return f"other names: {', '.join(sorted(ours.keys() ^ theirs.keys())[:3])}"
    for key, tensor in ours.items():
        other = theirs[key]
        if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
            return f"'{key}' is of another shape or type"
        # As bytes: -0.0 is not 0.0 here, and NaN is NaN.
        if not torch.equal(
            *(t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, other))
        ):
            gap = (tensor.double() - other.double()).abs().max().item()
            return f"'{key}' by up to {gap:.2g}"
    return ""


def _first_unlike(ours: list[float], theirs: list[float]) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} and {len(theirs)} steps"
    for step, pair in enumerate(zip(ours, theirs, strict=True), start=1):
        if pair[0] != pair[1]:
            return f"from step {step}: {pair[0]:.6g} and {pair[1]:.6g}"
    return ""


def _rows(stage: str, ours: Mapping[int, set[str]], theirs: Mapping[int, set[str]]) -> Finding:
    compared = f"{len(ours)} steps"
    for step in sorted({*ours, *theirs}):
        if ours.get(step) != theirs.get(step):
            return Finding(stage, "order of rows", compared, f"at step {step + 1}")
    return Finding(stage, "order of rows", compared)
