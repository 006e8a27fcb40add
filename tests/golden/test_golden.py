"""What is public is written down in this folder, so that a change of it shows as a changed file.

To accept changes that are meant: pytest tests/golden --rewrite-golden
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from llmft import api
from llmft.api import hookspecs
from llmft.api.errors import LlmftError
from llmft.cli.error_codes import CODES
from llmft.registry.contract import KINDS

HERE = Path(__file__).parent
MODULES = ("api", "toolkit", "testing", "notebook")
PUBLIC = {name for module in MODULES for name in importlib.import_module(f"llmft.{module}").__all__}


# --- names of a module ---------------------------------------------------------------------------


def names_of(module: str) -> Iterator[str]:
    """Yield a line for each public name, and for each public member of what llmft defines."""
    there = importlib.import_module(f"llmft.{module}")
    for name in sorted(there.__all__):
        yield from described(name, getattr(there, name))


def described(name: str, thing: Any) -> Iterator[str]:
    if not inspect.isclass(thing):
        own = inspect.isfunction(thing) and thing.__module__.startswith("llmft")
        yield f"{name}{signature_of(thing)}" if own else f"{name}: {kind_of(thing)}"
        return
    bases = [base.__name__ for base in thing.__bases__ if base.__name__ in PUBLIC]
    yield f"class {name}" + (f"({', '.join(bases)})" if bases else "")
    if issubclass(thing, BaseModel):
        for key, field in thing.model_fields.items():
            yield f"  {key}: {field_of(field)}"
    elif issubclass(thing, enum.Enum):
        yield from (f"  {member.name}" for member in thing)
    for key, member in sorted(members_of(thing).items()):
        yield f"  {key}{member}"


def kind_of(thing: Any) -> str:
    """Return what an object that is no class and no function of ours is."""
    if isinstance(thing, str | int | float):
        return repr(thing)
    if isinstance(thing, types.UnionType) or get_origin(thing) in (Literal, tuple):
        return re.sub(r"\bllmft\.[\w.]*\.", "", str(thing)).replace("typing.", "")
    owner = thing if inspect.isroutine(thing) else type(thing)
    return f"{owner.__module__.partition('.')[0]}'s {owner.__name__.lstrip('_')}"


class Written(str):
    """A text that a signature shows as it is, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def signature_of(function: Any) -> str:
    """Return a function's signature, its annotations as they are written in the code."""
    found = inspect.signature(function)
    parameters = [
        one.replace(
            annotation=one.annotation if one.annotation is one.empty else Written(one.annotation),
            default=Written("...") if inspect.isfunction(one.default) else one.default,
        )
        for one in found.parameters.values()
    ]
    returns = found.return_annotation
    if returns is not found.empty:
        returns = Written(returns)
    return str(found.replace(parameters=parameters, return_annotation=returns))


def field_of(field: Any) -> str:
    if field.is_required():
        return "required"
    if field.default is PydanticUndefined:
        return f"made by {field.default_factory.__name__}"
    return repr(field.default)


def members_of(cls: type[Any]) -> dict[str, str]:
    """Return a class's public members, those of its private bases included.

    Each comes with its signature, or with the type and the value that it declares.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is cls or (base.__module__.startswith("llmft") and base.__name__ not in PUBLIC):
            found |= own_members(base)
    return {key: told for key, told in found.items() if is_public(key, cls)}


def own_members(cls: type[Any]) -> dict[str, str]:
    found = {}
    if not issubclass(cls, BaseModel):
        told = vars(cls).get("__annotations__", {})
        found |= {key: f": {getattr(hint, '__forward_arg__', hint)}" for key, hint in told.items()}
    for key, value in vars(cls).items():
        plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if inspect.isfunction(plain) and plain.__module__.startswith("llmft"):
            found[key] = signature_of(plain)
        elif isinstance(value, property):
            found[key] = ": property"
        elif isinstance(value, bool | str | int) and key in found:
            found[key] += f" = {value!r}"
    return found


def is_public(key: str, cls: type[Any]) -> bool:
    if key == "__init__":
        # A dataclass's constructor is written by Python, in words that differ between versions.
        return not hasattr(cls, "__dataclass_fields__") and not getattr(cls, "_is_protocol", False)
    return not key.startswith("_")


# --- hooks, commands, exit codes -----------------------------------------------------------------


def hooks() -> Iterator[str]:
    yield f"API_VERSION = {api.API_VERSION}"
    for kind, contract in KINDS.items():
        yield f"kind {kind}: group '{contract.group}', hook {contract.hook}"
    for name in sorted(vars(hookspecs)):
        options = getattr(getattr(hookspecs, name), "llmft_spec", None)
        if options is not None:
            said = [key for key, value in sorted(options.items()) if value]
            signature = signature_of(getattr(hookspecs, name))
            yield f"{name}{signature}" + (f" [{', '.join(said)}]" if said else "")


def commands() -> Iterator[str]:
    from llmft.cli.main import app

    yield from commands_of(app, "llmft")


def commands_of(app: typer.Typer, path: str) -> Iterator[str]:
    """Yield each command with its arguments and options, from what the functions declare."""
    for info in sorted(app.registered_commands, key=name_of):
        yield f"{path} {name_of(info)}" + (" (hidden)" if info.hidden else "")
        hints = get_type_hints(info.callback, include_extras=True)
        for parameter in inspect.signature(info.callback).parameters.values():
            yield f"  {parameter_of(parameter, hints[parameter.name])}"
    for group in app.registered_groups:
        yield from commands_of(group.typer_instance, f"{path} {group.name}")


def name_of(info: Any) -> str:
    return str(info.name or info.callback.__name__.strip("_").replace("_", "-"))


def parameter_of(parameter: inspect.Parameter, hint: Any) -> str:
    kind, declared = get_args(hint)
    option = isinstance(declared, typer.models.OptionInfo)
    flags = list(declared.param_decls or []) or [f"--{parameter.name.strip('_').replace('_', '-')}"]
    marks = [told_type(kind)]
    marks += ["required"] if parameter.default is parameter.empty else []
    given = not any(parameter.default is none for none in NOT_GIVEN)
    marks += [f"default {parameter.default}"] if given else []
    marks += ["hidden"] if declared.hidden else []
    return f"{' '.join(flags) if option else parameter.name} ({', '.join(marks)})"


NOT_GIVEN = (None, False, inspect.Parameter.empty)


def told_type(kind: Any) -> str:
    parts = [part for part in get_args(kind) if part is not type(None)]
    if get_origin(kind) is list:
        return f"{parts[0].__name__}, repeatable"
    if get_origin(kind) is Literal:
        return "|".join(map(str, parts))
    return told_type(parts[0]) if parts else str(kind.__name__)


def exit_codes() -> Iterator[str]:
    kinds = {kind.exit_code: kind.__name__ for kind in (*LlmftError.__subclasses__(), LlmftError)}
    known = {0: "success", **kinds}
    yield from (f"{code} {name}" for code, name in sorted(known.items()))
    yield "128 + N: ended by signal N"
    yield from (f"error {code}" for code in sorted(CODES))


# --- the test ------------------------------------------------------------------------------------

GOLDEN = {f"{module}.txt": (names_of, module) for module in MODULES} | {
    "hooks.txt": (hooks,),
    "cli.txt": (commands,),
    "exit_codes.txt": (exit_codes,),
}


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_what_is_public_is_what_is_written_down(name, request):
    make, *arguments = GOLDEN[name]
    now = "\n".join(make(*arguments)) + "\n"
    path = HERE / name
    if request.config.getoption("--rewrite-golden"):
        path.write_text(now, "utf-8")
    assert path.read_text("utf-8").splitlines() == now.splitlines(), (
        f"{name} differs; where that is meant: pytest tests/golden --rewrite-golden"
    )


def test_the_policy_names_every_file():
    page = (HERE.parents[1] / "docs" / "versioning.md").read_text("utf-8")
    written = {path.name for path in HERE.glob("*.txt")}
    assert written == set(GOLDEN)
    assert sorted(name for name in written if f"tests/golden/{name}" not in page) == []


def test_a_public_module_says_what_is_public():
    for module in MODULES:
        there = importlib.import_module(f"llmft.{module}")
        assert sorted(set(there.__all__)) == sorted(there.__all__)
        assert all((getattr(there, name, None)) is not None for name in there.__all__)
