"""`llmft import` of another tool's configuration: a recipe, a verdict, a finding for each key."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from llmft.api.errors import Fault, LlmftError, Place, RecipeError
from llmft.importing.configuration import Configuration, of_yaml
from llmft.importing.peer_translation import Translation, translated
from llmft.importing.recognising import peer_of, trainer_of
from llmft.importing.schema import Schema
from llmft.importing.structure.arguments import batch_of_processes
from llmft.importing.structure.forms import FORMS
from llmft.importing.structure.online import counts
from llmft.importing.tables import PEERS, table
from llmft.importing.verdicts import Finding, Verdict, blocks, verdict_of
from llmft.importing.writing import recipe_text
from llmft.recipes.load import load_recipe
from llmft.recipes.secret import masked_source, secret_in
from llmft.recipes.tree import visible
from llmft.registry.registry import Registry

_STAGE = re.compile(r"^stages\[0\]\.")
_TOLD = {
    "same": "It trains the same.",
    "same but for speed or logging": "It trains the same but for speed or logging.",
    "needs your decision": "Not everything is taken over: see DECIDE below.",
}
_CODES = {"decide": "E092", "cannot": "E093"}


@dataclass(frozen=True)
class Choices:
    """What the command line says beside the file.

    peer, trainer, rows: '' where the file is to say. processes: None where its launcher is.
    """

    peer: str = ""
    trainer: str = ""
    rows: str = ""
    processes: int | None = None


def choices(
    peer: str | None, trainer: str | None, rows: str | None, processes: int | None
) -> Choices:
    """Return the command line's choices; RecipeError where a word is not known."""
    for word, known, option in ((peer, PEERS, "--peer"), (rows, FORMS, "--rows")):
        if word is not None and word not in known:
            what = f"{option} '{visible(word)[:60]}' is not known"
            raise RecipeError("E090", what, fix=f"write one of {', '.join(known)}")
    return Choices(peer or "", trainer or "", rows or "", processes)


@dataclass(frozen=True)
class PeerImport:
    """A configuration as a recipe: its text ('' where there is none), and what was found."""

    peer: str
    version: str
    verdict: Verdict
    text: str
    findings: tuple[Finding, ...]
    file: str

    def faults(self) -> list[Fault]:
        """Return what keeps the recipe from being written, a fault for each key."""
        found = []
        for finding in self.findings:
            if blocks(finding):
                fix = "--anyway writes the recipe without it" if finding.grade == "decide" else ""
                if finding.grade == "decide" and "--rows" in finding.why:
                    fix = "say it with --rows"
                place = finding.place or Place(self.file)
                what = finding.why
                if finding.key and not (finding.place and finding.said in what):
                    what = f"{finding.said or finding.key}: {what}"
                found.append(Fault(_CODES[finding.grade], what, fix, place=place))
        return found

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "peer": self.peer,
            "version": self.version,
            "verdict": self.verdict,
            "findings": [finding.as_json() for finding in self.findings],
        }


def import_configuration(
    configuration: Configuration, choices: Choices, registry: Registry
) -> PeerImport:
    """Return what a configuration comes to; its recipe passes `llmft validate`.

    Raises RecipeError where it is not known whose configuration it is, or by what it trains.
    """
    peer = choices.peer or peer_of(configuration)
    rules = table(peer)
    trainer = choices.trainer or trainer_of(configuration, peer)
    secrets = tuple(
        str(key.value)
        for key in configuration.keys.values()
        if isinstance(key.value, str) and key.value and secret_in(key.name, key.value)
    )
    translation = Translation(
        rules,
        configuration,
        Schema(registry),
        trainer=trainer,
        processes=choices.processes,
        rows=choices.rows,
    )
    if configuration.launcher:
        translation.note(
            "none",
            None,
            f"'{configuration.launcher[:200]}' is not taken over: a recipe"
            " does not say how it is launched",
        )
    translated(translation)
    batch_of_processes(translation)
    counts(translation)
    text = ""
    if not any(finding.grade == "cannot" for finding in translation.findings):
        text = _written(translation)
        if not _validate(text, translation, registry):
            text = ""
    if any(finding.grade == "cannot" for finding in translation.findings):
        text = ""
    findings = tuple(_masked(finding, secrets) for finding in translation.findings)
    verdict = verdict_of(findings)
    if text:
        text = masked_source(_written(translation, verdict), secrets)
    return PeerImport(peer, rules.version, verdict, text, findings, configuration.file)


def _written(translation: Translation, verdict: str = "") -> str:
    draft, configuration = translation.draft, translation.configuration
    origin = f"{translation.origin}: {PurePath(configuration.script or configuration.file).name}"
    stage = str(draft.get("alignment.method") or "sft")
    last = translation.table.peer if configuration.file == "<command>" else configuration.file
    name = f"{draft.get('adapter.method')}_{stage}_{PurePath(last).stem}"
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:64].strip("_") or "imported"
    notes = [_TOLD[verdict]] if verdict in _TOLD else []
    if translation.processes > 1:
        notes.append(f"It was started with {translation.processes} processes.")
    return recipe_text(draft, name, origin, stage=stage, notes=notes)


def _validate(text: str, translation: Translation, registry: Registry) -> bool:
    """Load the recipe as `llmft validate` would; a fault is a finding about the key it is of.

    Return whether it is a recipe. What is only missing is no finding where a decision is awaited.
    """
    awaited = any(finding.grade == "decide" for finding in translation.findings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            load_recipe(path, registry)
            return True
        except LlmftError as error:
            for fault in (others := of_the_recipe(error.faults)):
                home = _home(fault)
                key = _key_of(home, translation)
                what = re.sub(r" \(lines [\d, and]+\)$", "", fault.what)
                if key is None and not awaited:
                    translation.note("cannot", home, what, missing=home or fault.code)
                elif key is not None:
                    translation.note("cannot", key, what, missing=f"{home}: {what[:60]}")
            for fault in error.faults:
                if fault not in others:
                    key = _key_of(_home(fault), translation)
                    translation.note("none", key, f"{fault.what}: {fault.fix}")
            return not others


def of_the_recipe(faults: Sequence[Fault]) -> list[Fault]:
    """Return the faults but those of a missing package of a tracker or a reward.

    A run says that, too.
    """
    packaged = ("trackers", "alignment.rewards")
    return [f for f in faults if not (f.code == "E206" and _home(f).startswith(packaged))]


def _home(fault: Fault) -> str:
    """Return the setting that a fault is of, as a draft names it."""
    return re.sub(r"\[\d+\]", "", _STAGE.sub("", fault.path))


def _key_of(home: str, translation: Translation) -> Any:
    while home:
        entry = translation.draft.entry(home)
        if entry is not None and entry.flag is not None:
            return entry.flag
        home = home.rpartition(".")[0]
    return None


def _masked(finding: Finding, secrets: Sequence[str]) -> Finding:
    if not secrets:
        return finding
    place = finding.place
    if place is not None:
        place = replace(place, source=masked_source(place.source, tuple(secrets)))
    return replace(
        finding,
        place=place,
        why=masked_source(finding.why, tuple(secrets)),
        said=masked_source(finding.said, tuple(secrets)),
    )


def import_yaml(text: str, file: str, choices: Choices, registry: Registry) -> PeerImport:
    """Return what a YAML configuration comes to."""
    return import_configuration(of_yaml(text, file), choices, registry)


def written(imported: PeerImport, *, anyway: bool) -> str:
    """Return the recipe's text; RecipeError with a line for each key that keeps it from being."""
    allowed = imported.verdict in ("same", "same but for speed or logging") or (
        anyway and imported.verdict == "needs your decision"
    )
    if not allowed or not imported.text:
        raise RecipeError.of(imported.faults())
    return imported.text


def as_text(imported: PeerImport, output: str) -> str:
    """Return what was written and what differs, a line each."""
    lines = [
        f"wrote {output}; check it with: llmft validate {shlex.quote(output)}",
        f"{imported.verdict} ({imported.peer} {imported.version})",
    ]
    for finding in imported.findings:
        if finding.grade != "none":
            said = ": ".join(part for part in (finding.said or finding.key, finding.why) if part)
            lines.append(f"  {finding.grade}: {said}")
    return "\n".join(lines)
