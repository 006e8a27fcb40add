"""`llmft doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmft.cli.commands import environment
from llmft.cli.commands.output import prose, table
from llmft.registry.registry import Registry

_LITTLE_DISK_GIB = 2


def examine(with_torch: bool) -> dict[str, Any]:
    """Return what is installed, the machine, every method's state, and what a person should mend.

    with_torch: ask torch about devices too, which takes seconds.
    """
    registry = Registry.discover()
    report: dict[str, Any] = {
        "machine": environment.machine(Path()),
        "accelerators": environment.accelerators(),
        "packages": environment.versions(),
        "methods": [asdict(record) for record in registry.records()],
    }
    if with_torch:
        report["torch"] = environment.torch_devices()
    return report | {"problems": _problems(report) + list(registry.remarks)}


def _problems(report: dict[str, Any]) -> list[str]:
    problems = [
        f"package '{name}' is missing — fix: pip install '{name}'"
        for name, version in report["packages"].items()
        if version is None
    ]
    for row in report["methods"]:
        who = f"{row['kind']} '{row['method']}' of '{row['distribution']}' {row['version']}"
        if row["state"] in ("broken", "blocked"):
            problems.append(f"{who} is {row['state']}: {row['reason']}")
        problems += [f"{who} {remark}" for remark in row["remarks"]]
    if report["machine"]["disk_free_gib"] < _LITTLE_DISK_GIB:
        problems.append(f"only {report['machine']['disk_free_gib']} GiB are free on this disk")
    if report["accelerators"] and "torch" in report and not report["torch"]["cuda"]:
        problems.append("there is a GPU, but torch cannot use it: it is a CPU build, or too old")
    return problems


def as_text(report: dict[str, Any]) -> str:
    """Return the report in sections, problems last."""
    machine, gpus = report["machine"], report["accelerators"]
    facts = [
        ("python", f"{machine['python']} ({machine['executable']})"),
        ("platform", machine["platform"]),
        ("cores", str(machine["cores"])),
        ("memory", f"{machine['memory_gib']} GiB"),
        ("free disk here", f"{machine['disk_free_gib']} GiB"),
        ("accelerator", "; ".join(gpus) or "none: training runs on the CPU"),
    ]
    facts += [(f"torch {key}", str(value)) for key, value in report.get("torch", {}).items()]
    methods = [
        (row["kind"], row["method"], row["state"], row["reason"]) for row in report["methods"]
    ]
    packages = [(name, version or "missing") for name, version in report["packages"].items()]
    problems = report["problems"] or ["none"]
    return "\n\n".join(
        (
            table(("machine", ""), facts),
            table(("package", "version"), packages),
            table(("kind", "method", "state", "reason"), methods) if methods else "no methods",
            prose("problems:\n" + "\n".join(f"  {problem}" for problem in problems)),
        )
    )
