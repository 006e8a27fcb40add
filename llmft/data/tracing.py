"""Jinja's environment of a chat template, made to keep where text comes from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jinja2 import nodes, pass_environment
from jinja2.compiler import CodeGenerator, Frame
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmft.data import traced


class _Code(CodeGenerator):
    """Code in which `~` asks the environment, since Jinja's own function makes a plain string."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class TracingEnvironment(ImmutableSandboxedEnvironment):
    """transformers' environment, with every function that joins or cuts text replaced."""

    code_generator_class = _Code

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Return texts as one."""
        return traced.join("", parts)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        of = getattr(__obj, "__self__", None)
        if type(of) is str and getattr(__obj, "__name__", "") == "join" and len(args) == 1:
            return traced.join(of, args[0])
        return super().call(__context, __obj, *args, **kwargs)


def environment_like(plain: Any) -> TracingEnvironment:
    """Return a tracing environment with the rules, names and filters of a plain one."""
    made = TracingEnvironment(
        trim_blocks=plain.trim_blocks,
        lstrip_blocks=plain.lstrip_blocks,
        extensions=[type(extension) for extension in plain.extensions.values()],
    )
    made.globals.update(plain.globals)
    made.filters.update(plain.filters)
    made.filters.update(
        {
            "trim": lambda value, chars=None: str(value).strip(chars),
            "string": str,
            "safe": str,
            "upper": lambda value: str(value).upper(),
            "lower": lambda value: str(value).lower(),
            "capitalize": lambda value: str(value).capitalize(),
            "replace": lambda value, old, new, count=None: str(value).replace(
                str(old), str(new), -1 if count is None else count
            ),
            "join": _join,
            "indent": _indent,
            "tojson": traced.to_json,
        }
    )
    return made


@pass_environment
def _join(environment: Any, value: Any, d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return traced.join(str(d), map(str, value))


def _indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    space = width if isinstance(width, str) else " " * width
    lines = (str(value) + "\n").splitlines()
    rest = [traced.join("", (space, line)) if line or blank else line for line in lines[1:]]
    text = traced.join("\n", (*lines[:1], *rest))
    return traced.join("", (space, text)) if first else text
