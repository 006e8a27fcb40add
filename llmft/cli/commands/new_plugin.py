"""`llmft new-plugin NAME --kind KIND`: a package with a method that works, and its tests.

The templates are the examples of docs/plugins too, so what is shown there is what is written here.
"""

from __future__ import annotations

import ast
import importlib.util
import keyword
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from string import Template

from llmft.api.errors import RecipeError
from llmft.api.kinds import Kind
from llmft.registry.contract import KINDS
from llmft.registry.registry import Registry
from llmft.system.fsio import disk_errors

TEMPLATES = Path(__file__).with_name("plugin_templates")
EXAMPLES: Mapping[Kind, str] = {
    "adapter": "bottleneck",
    "alignment": "confidence_penalty",
    "task": "rejection_sampling",
    "reward": "brief_answer",
    "dataset": "alpaca",
    "optimizer": "signum",
    "schedule": "stepwise",
    "callback": "target_loss",
    "metric": "answer_words",
    "tracker": "csv_file",
}
"""What the example of each kind is called in the documentation."""

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_MOST_LETTERS = 40


def write_plugin(name: str, kind: Kind, output: str | None = None) -> tuple[Path, list[str]]:
    """Write a new package, and return its folder with the paths of its files.

    output: the folder; default: one of the distribution's name in the working folder.
    Raises RecipeError where the name cannot be a method's, or the folder holds something.
    """
    method = _method_name(name, kind)
    folder = Path(output or f"llmft-{method.replace('_', '-')}")
    files = plugin_files(method, kind)
    _refuse_imported_name(method, files)
    taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    if taken or (folder.is_symlink() and output is None):  # whose link nobody has named
        raise RecipeError(
            "E091",
            f"'{folder}' exists already",
            fix="choose another --output, or move the folder",
        )
    for path, text in files.items():
        target = folder / path
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    return folder, list(files)


def plugin_files(method: str, kind: Kind) -> dict[str, str]:
    """Return the files of a package that offers a method: their paths and their texts."""
    values = {
        "name": method,
        "Name": _class_name(method),
        "package": f"llmft_{method}",
        "distribution": f"llmft-{method.replace('_', '-')}",
        "kind": {
            "reward": "reward function",
            "dataset": "data set",
            "optimizer": "optimiser",
            "schedule": "learning-rate schedule",
        }.get(kind, kind),
        "group": KINDS[kind].group,
    }
    values["use"] = _filled(f"{kind}/use.yaml", values).rstrip()
    files = {name: _filled(name, values) for name in ("pyproject.toml", "README.md")}
    for path in sorted((TEMPLATES / kind).glob("*.py.tmpl")):
        name = path.name.removesuffix(".tmpl")
        if name == "test.py":
            continue
        files[f"src/{values['package']}/{name}"] = _filled(f"{kind}/{name}", values)
    files[f"tests/test_{method}.py"] = _filled(f"{kind}/test.py", values)
    return files


def as_text(folder: Path, files: list[str]) -> str:
    """Return what was written, and what to do next."""
    lines = [f"wrote {folder}:", *(f"  {path}" for path in files)]
    install = f"cd {shlex.quote(str(folder))} && pip install -e '.[test]' && pytest"
    return "\n".join([*lines, f"next: {install}"])


def _filled(name: str, values: Mapping[str, str]) -> str:
    text = (TEMPLATES / f"{name}.tmpl").read_text("utf-8")
    return Template(text).substitute(values)


def _class_name(method: str) -> str:
    return "".join(word.capitalize() for word in method.split("_"))


def _method_name(name: str, kind: Kind) -> str:
    """Return the name as recipes write it; RecipeError where it cannot be one."""
    method = name.lower().replace("-", "_")
    if not _NAME.fullmatch(method) or keyword.iskeyword(method) or len(method) > _MOST_LETTERS:
        raise RecipeError(
            "E090",
            f"'{name}' cannot name a method",
            fix=f"use at most {_MOST_LETTERS} lower-case letters, digits and '_', such as"
            f" 'my_{kind}'",
        )
    if method in Registry.discover().names(kind):
        raise RecipeError(
            "E090",
            f"the {kind} '{method}' is installed already",
            fix="choose another name: two plugins cannot have the same name",
        )
    if importlib.util.find_spec(f"llmft_{method}") is not None:
        raise RecipeError(
            "E090", f"a package 'llmft_{method}' is installed already", fix="choose another name"
        )
    return method


def _refuse_imported_name(method: str, files: Mapping[str, str]) -> None:
    """Raise RecipeError where the new class would hide a name that its own module imports."""
    name = _class_name(method)
    imported = {
        alias.name
        for path, text in files.items()
        if path.endswith(".py")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("llmft_")
        for alias in node.names
    }
    if name in imported:
        raise RecipeError(
            "E090",
            f"a method called '{method}' has the class '{name}', which is taken",
            fix=f"choose another name, such as 'my_{method}'",
        )
