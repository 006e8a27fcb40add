"""One installed method, tried: its plugin imported and checked, or the fault that it has."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from llmft import api
from llmft.api.errors import PluginError
from llmft.api.kinds import Kind
from llmft.registry import safe_import
from llmft.registry.contract import class_of
from llmft.registry.entry_points import MethodEntry
from llmft.registry.hook_manager import STAGE_HOOK, ContractViolation, alone, implements

Imports = dict[str, safe_import.Outcome[Any] | safe_import.Failed]


@dataclass(slots=True)
class LoadResult:
    """What trying an offer gave. `cls` is None for a cross-cutting plugin, and where it failed."""

    cls: type[Any] | None = None
    plugin: object | None = None
    error: PluginError | None = None
    reason: str = ""
    summary: str = ""
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    printed: str = ""

    def remarks(self) -> tuple[str, ...]:
        """Return what an author should mend although the method works."""
        found = []
        if self.seconds > safe_import.SLOW_SECONDS:
            found.append(f"takes {self.seconds:.1f} s to import")
        if self.printed:
            found.append(f"prints at import: {safe_import.shortened(self.printed, 80)!r}")
        return tuple(found)


def load_method(kind: str, offer: MethodEntry, imports: Imports) -> LoadResult:
    """Return the trial of an offer; never raises for what the plugin does.

    imports: what was imported so far, by entry-point value; the new one is added.
    """
    trial, cause = LoadResult(), cast("BaseException | None", None)
    code, fault, suggested_fix = (
        "E502",
        "breaks the contract",
        f"pip install -U {offer.distribution}",
    )
    try:
        outcome = _import(offer, imports)
        trial.plugin, trial.seconds = outcome.value, outcome.seconds
        trial.printed = outcome.printed
        # Under guard, because hooks and properties are foreign code too: they may raise or exit.
        safe_import.guarded(lambda: _inspect(kind, offer, trial))
        return trial
    except safe_import.Failed as exc:
        cause = exc.__cause__ or exc
        trial.reason, trial.seconds = exc.reason, trial.seconds or exc.seconds
        if trial.plugin is None and not isinstance(cause, ContractViolation):
            code, fault = "E501", "cannot be imported"
            suggested_fix = offer.way_to_install(exc.missing) if exc.missing else suggested_fix
    if isinstance(cause, ContractViolation):
        code, suggested_fix = cause.code, cause.fix or suggested_fix
        fault = "does not fit this llmft" if code == "E505" else fault
        trial.reason = safe_import.shortened(cause.reason, 300)
    trial.cls = None
    who = f"{kind} '{offer.name}' of '{offer.distribution}' {offer.version}".rstrip()
    what = f"{who} {fault}: {trial.reason}"
    trial.error = PluginError(
        code, what, fix=f"{suggested_fix}, or pip uninstall {offer.distribution}"
    )
    trial.error.__cause__ = cause
    return trial


def _import(offer: MethodEntry, imports: Imports) -> safe_import.Outcome[Any]:
    # One import for all the methods of a module: a broken one is not run again for each.
    if offer.value not in imports:
        try:
            imports[offer.value] = safe_import.guarded(lambda: _found(offer))
        except safe_import.Failed as exc:
            imports[offer.value] = exc
    outcome = imports[offer.value]
    if isinstance(outcome, safe_import.Failed):
        raise outcome
    return outcome


def _found(offer: MethodEntry) -> Any:
    if not offer.module:
        raise ContractViolation(f"its entry point '{offer.value}' names no module")
    return safe_import.entry_object(offer.module, offer.attribute)


def _inspect(kind: str, offer: MethodEntry, trial: LoadResult) -> None:
    plugin = trial.plugin
    _check_version(offer, plugin)
    if kind == "plugin":
        if not implements(plugin, alone(plugin), STAGE_HOOK):
            raise ContractViolation(f"it implements no hook '{STAGE_HOOK}'")
    else:
        trial.cls = class_of(cast(Kind, kind), offer.name, plugin)
        trial.capabilities = trial.cls.capabilities()
    about = plugin if trial.cls is None else trial.cls
    trial.summary = (getattr(about, "__doc__", None) or "").strip().partition("\n")[0]


def _check_version(offer: MethodEntry, plugin: object) -> None:
    for place in (plugin, sys.modules.get(offer.module)):
        theirs = getattr(place, "LLMFT_API_VERSION", None)
        if theirs is not None and theirs != api.API_VERSION:
            newer = isinstance(theirs, int) and theirs > api.API_VERSION
            raise ContractViolation(
                f"it is written for version {theirs!r} of the plugin contract,"
                f" this llmft has {api.API_VERSION}",
                code="E505",
                fix=f"pip install -U {'llmft' if newer else offer.distribution}",
            )
