"""The methods that are installed: found by metadata, imported one by one and only when named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pluggy

from llmft.api.errors import PluginError
from llmft.api.kinds import Kind
from llmft.registry.contract import KINDS
from llmft.registry.entry_points import MethodEntry, canonical, installed
from llmft.registry.hook_manager import HookManager
from llmft.registry.load_result import Imports, LoadResult, load_method
from llmft.registry.other_names import OTHER_NAMES
from llmft.system.nearest import did_you_mean

State = Literal["ok", "blocked", "broken", "untried"]
_GROUPS: dict[str, str] = {contract.group: kind for kind, contract in KINDS.items()}
_GROUPS["llmft.plugins"] = "plugin"


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one installed method, for `list-plugins` and the lock.

    kind: one of `KINDS`, or 'plugin' for a cross-cutting one. state: 'blocked' means that it works
    but shares its name, so only `dist:name` picks it; 'untried' that it was not imported yet.
    """

    kind: str
    method: str
    distribution: str
    version: str
    module: str
    state: State
    reason: str = ""
    summary: str = ""
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    remarks: tuple[str, ...] = ()


class Registry:
    """Names to classes, for each kind of method and the cross-cutting plugins."""

    def __init__(self, offers: Sequence[MethodEntry], remarks: Sequence[str] = ()) -> None:
        self.remarks = tuple(remarks)
        self.manager = HookManager()
        self._entries = list(offers)
        self._same: dict[tuple[str, str], list[MethodEntry]] = {}
        for offer in self._entries:
            self._same.setdefault((offer.group, offer.name), []).append(offer)
        self._results: dict[MethodEntry, LoadResult] = {}
        self._imports: Imports = {}
        self._acting: list[object] = []

    @classmethod
    def discover(cls) -> Registry:
        """Return the registry of all that is installed; reads metadata, imports nothing."""
        return cls(*installed(_GROUPS))

    def names(self, kind: str) -> list[str]:
        """Return the methods of a kind as a recipe may write them; `dist:name` where two share one.

        kind: one of `KINDS`, or 'plugin' for what may stand under `plugins:`.
        """
        return sorted(self._spelling(offer) for offer in self._of(kind))

    def method(self, kind: Kind, name: str) -> type[Any]:
        """Return the class of a method, importing its plugin alone; PluginError where it cannot."""
        trial = self._try(self._pick(kind, name))
        assert trial.cls is not None
        return trial.cls

    def broken(self, kind: str) -> dict[str, str]:
        """Return the methods that were tried and cannot be used, each with its reason."""
        return {
            self._spelling(offer): trial.reason
            for offer in self._of(kind)
            if (trial := self._results.get(offer)) and trial.error is not None
        }

    def records(self, load: bool = True) -> list[Record]:
        """Return a row for each that is installed; `load` imports all of them, surviving each."""
        order = [*get_args(Kind), "plugin"]
        offers = sorted(self._entries, key=lambda o: (order.index(_GROUPS[o.group]), o.name))
        return [self._record(offer, load) for offer in offers]

    def cross_cutting(self, names: Iterable[str]) -> pluggy.PluginManager:
        """Return the hook manager, in which exactly the named plugins now act on stages.

        The first that is named is the outermost. Raises PluginError before any of them acts.
        """
        wanted: list[object] = []
        for name in names:
            plugin = self._try(self._pick("plugin", name)).plugin
            if plugin is not None and not any(plugin is other for other in wanted):
                wanted.append(plugin)
        for plugin in self._acting:
            self.manager.enter(plugin, acts=False)
        for plugin in reversed(wanted):  # pluggy calls the one that came last first
            self.manager.enter(plugin, acts=True)
        self._acting = wanted
        return self.manager

    # --- finding the offer that a name means -------------------------------------------------

    def _of(self, kind: str) -> list[MethodEntry]:
        return [offer for offer in self._entries if _GROUPS[offer.group] == kind]

    def _sharing(self, offer: MethodEntry) -> list[MethodEntry]:
        return self._same[offer.group, offer.name]

    def _spelling(self, offer: MethodEntry) -> str:
        return offer.full_name if len(self._sharing(offer)) > 1 else offer.name

    def _pick(self, kind: str, name: str) -> MethodEntry:
        dist, colon, plain = name.rpartition(":")
        found = [
            offer
            for offer in self._of(kind)
            if offer.name == plain
            and (not colon or canonical(offer.distribution) == canonical(dist))
        ]
        if not found:
            raise self._unknown(kind, name)
        if len(found) > 1:
            raise _clash(kind, name, found)
        return found[0]

    def _unknown(self, kind: str, name: str) -> PluginError:
        names = self.names(kind)
        elsewhere = sorted(
            {_GROUPS[o.group] for o in self._entries if o.name == name and _GROUPS[o.group] != kind}
        )
        what = f"no {kind} is called '{name}'"
        if elsewhere:
            what += f" ('{name}' is {_article(elsewhere[0])})"
        what += f"; installed: {', '.join(names) or 'none'}"
        if broken := self.broken(kind):
            what += "; broken: " + "; ".join(f"{key} ({why})" for key, why in broken.items())
        known = OTHER_NAMES.get(kind, {}).get(name.lower().replace("-", "_"))
        suggested_fix = known or did_you_mean(name, names) or "see llmft list-plugins"
        return PluginError("E504", what, fix=suggested_fix)

    def _try(self, offer: MethodEntry) -> LoadResult:
        trial = self._load_result(offer)
        if trial.error is not None:
            raise trial.error
        return trial

    def _load_result(self, offer: MethodEntry) -> LoadResult:
        if offer not in self._results:
            trial = self._results[offer] = load_method(_GROUPS[offer.group], offer, self._imports)
            if trial.plugin is not None and trial.error is None:
                self.manager.enter(
                    trial.plugin, acts=any(trial.plugin is plugin for plugin in self._acting)
                )
        return self._results[offer]

    def _record(self, offer: MethodEntry, load: bool) -> Record:
        trial = self._load_result(offer) if load else self._results.get(offer)
        sharing = [other for other in self._sharing(offer) if other is not offer]
        state: State = "ok" if trial else "untried"
        reason = ""
        if sharing:
            others = ", ".join(f"'{other.distribution}' {other.version}" for other in sharing)
            state, reason = "blocked", f"also offered by {others}; write '{offer.full_name}'"
        if trial and trial.error is not None:
            state, reason = "broken", trial.reason
        return Record(
            kind=_GROUPS[offer.group], method=offer.name, distribution=offer.distribution,
            version=offer.version, module=offer.module, state=state, reason=reason,
            summary=trial.summary if trial else "",
            capabilities=trial.capabilities if trial else {},
            seconds=trial.seconds if trial else 0.0, remarks=trial.remarks() if trial else (),
        )  # fmt: skip


def _clash(kind: str, name: str, found: Sequence[MethodEntry]) -> PluginError:
    who = " and ".join(f"'{o.distribution}' {o.version}".rstrip() for o in found)
    dists = list(dict.fromkeys(o.distribution for o in found))
    if len(dists) == 1:
        values = " and ".join(f"'{o.value}'" for o in found)
        what = f"{kind} '{name}' is offered twice by '{dists[0]}': as {values}"
        return PluginError("E503", what, fix=f"pip install -U, or uninstall, '{dists[0]}'")
    ways = " or ".join(f"'{o.full_name}'" for o in found)
    return PluginError(
        "E503", f"{kind} '{name}' is offered by {who}", fix=f"write {ways}, or uninstall one"
    )


def _article(kind: str) -> str:
    if kind == "plugin":
        return "a cross-cutting plugin"
    return f"an {kind}" if kind.startswith("a") else f"a {kind}"
