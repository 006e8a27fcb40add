"""The hooks of plugins: checked for each plugin alone, then called through one manager."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import pluggy

from llmft.api import hookspecs

STAGE_HOOK = "llmft_run_stage"


class ContractViolation(Exception):
    """Says in one line how a plugin breaks the contract; `fix`: a fix other than the usual one."""

    def __init__(self, reason: str, *, code: str = "E502", fix: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.fix = fix


class HookManager(pluggy.PluginManager):
    """A hook manager in which a plugin touches stages only where a recipe names it."""

    def __init__(self) -> None:
        super().__init__("llmft")
        self._silent: set[int] = set()
        self.add_hookspecs(hookspecs)

    def enter(self, plugin: object, *, acts: bool) -> None:
        """Register a plugin, or register it anew; unless it `acts`, it cannot wrap stages."""
        if self.is_registered(plugin):
            self.unregister(plugin)
        (self._silent.discard if acts else self._silent.add)(id(plugin))
        # A name of its own: pluggy refuses a second object whose __name__ is taken.
        self.register(plugin, f"{getattr(plugin, '__name__', 'object')}@{id(plugin)}")

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        """Return a hook's options, or None for a hook that must not act."""
        if name == STAGE_HOOK and id(plugin) in self._silent:
            return None
        return super().parse_hookimpl_opts(plugin, name)


def alone(plugin: object) -> pluggy.PluginManager:
    """Return a hook manager that holds one plugin only; raise Breach where its hooks are wrong.

    One manager for each, because pluggy checks a manager as a whole: in a shared one, the unknown
    hook of one plugin would be the fault of all.
    """
    if inspect.isclass(plugin):
        raise ContractViolation(
            f"the entry point names the class '{plugin.__name__}', not a module of hooks"
        )
    manager = pluggy.PluginManager("llmft")
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin, "plugin")
    except pluggy.PluginValidationError as exc:
        raise ContractViolation(
            f"wrong hook arguments: {str(exc).splitlines()[-1].strip()}"
        ) from exc
    known = [name for name in dir(hookspecs) if name.startswith("llmft_")]
    for caller in manager.get_hookcallers(plugin) or []:
        if not caller.has_spec() and not all(i.optionalhook for i in caller.get_hookimpls()):
            near = difflib.get_close_matches(caller.name, known, n=1)
            hint = f"; did you mean '{near[0]}'" if near else f" (there are: {', '.join(known)})"
            raise ContractViolation(f"unknown hook '{caller.name}'{hint}")
    return manager


def implements(plugin: object, manager: pluggy.PluginManager, hook: str) -> bool:
    """Return whether a plugin implements a hook; raise Breach if it only forgot the marker."""
    if any(caller.name == hook for caller in manager.get_hookcallers(plugin) or []):
        return True
    if callable(getattr(plugin, hook, None)):
        raise ContractViolation(f"'{hook}' is not marked with @llmft.api.hookimpl")
    return False
