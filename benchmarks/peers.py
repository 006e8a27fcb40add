"""How much of other tools' own example configurations `llmft import` takes over, and what blocks.

    LLMFT_PEER_CONFIGS=configs.jsonl.gz python benchmarks/peers.py [--write docs/moving.md]

The file has a configuration in each line: `peer`, `path`, `form` (yaml, command or shell),
`method` and `text`. Every recipe that is written is loaded as `llmft validate` does. `--write` puts
the tables between the marks of a page.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from llmft.api.errors import EnvironmentFault, LlmftError
from llmft.cli.commands.import_check import Row, row_of
from llmft.cli.commands.import_peer import Choices, import_configuration
from llmft.importing.commandline import find_commands
from llmft.importing.configuration import Configuration, of_command, of_yaml
from llmft.importing.tables import PEERS
from llmft.importing.verdicts import VERDICTS
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry

BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
_SHELL = "a value that only the shell knows"
# Distillation but GKD, and environments: no aim yet.
_WAIVED = (
    "gold", "sdft", "ssd", "sdpo", "trl_gold", "verl_grpo", "wordle", "echo",
    "browsergym", "browsergym_llm", "sudoku", "catch", "opencode", "seta", "data_agent",
)  # fmt: skip
# What a configuration trains by that has no counterpart here, as the reason says it: other losses,
# other adapters and optimisers, bases of other kinds, models that are no causal language model.
_OTHER_METHODS = (
    "trainer ", "a diffusion language model", "a process reward model", "classes of a sequence",
    "classes or embeddings", "a multimodal", "quantisation-aware", "entropy-aware",
    "anchored supervised", "a mixture of depths", "training in FP8", "Megatron", "finetuning_type ",
    "tuner_type ", "GaLore", "ReFT", "LLaMA-Pro", "LISA", "LoftQ", "ReLoRA", "APOLLO", "Adam-mini",
    "a base stored by", "experts stored in", "random weights", "training from random weights",
    "continued pretraining", "distillation", "environments",
)  # fmt: skip


def configurations(path: str) -> list[dict[str, Any]]:
    """Return the configurations in a file of JSON lines, packed or not."""
    opened = gzip.open if path.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read(item: dict[str, Any]) -> Configuration:
    """Return one of them, as `llmft import` reads it; the last command of a shell text."""
    if item["form"] == "yaml":
        return of_yaml(item["text"], item["path"])
    commands = find_commands(item["text"], item["path"])
    if not commands:
        return Configuration(item["path"], trainer=str(item["method"]))
    return of_command(commands[-1], item["path"])


def judged(item: dict[str, Any], registry: Registry) -> tuple[Row, bool]:
    """Return what one comes to, and whether its recipe was loaded."""
    try:
        configuration = read(item)
        stated = configuration.trainer or item["form"] != "yaml"
        trainer = "" if stated or item["peer"] != "trl" else str(item["method"])
        found = import_configuration(configuration, Choices(item["peer"], trainer), registry)
    except LlmftError as error:
        fault = error.faults[0]
        blocking = _SHELL if fault.code == "E051" else f"{fault.code}: {fault.what[:60]}"
        return Row(item["path"], item["peer"], "needs your decision", (blocking,)), False
    if not found.text:
        return row_of(found), False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(found.text, encoding="utf-8")
        try:
            load_recipe(path, registry)
        except EnvironmentFault as error:
            if any(fault.code != "E206" for fault in error.faults):
                raise  # a tracker's package that is not on this machine is no fault of the recipe
    return row_of(found), True


def tables(items: list[dict[str, Any]], rows: list[Row]) -> str:
    """Return the shares by peer and what blocks, as Markdown."""
    lines = ["| peer | configurations | " + " | ".join(VERDICTS) + " | method exists | of these |",
             "|---|---" + "|---" * (len(VERDICTS) + 2) + "|"]  # fmt: skip
    peers = [*PEERS, None]
    for peer in peers:
        own = [(i, r) for i, r in zip(items, rows, strict=True) if peer in (None, r.peer)]
        if not own:
            continue
        counts = Counter(row.verdict for _, row in own)
        aimed = [r for i, r in own if i["method"].lower() not in _WAIVED and not _foreign(r)]
        good = sum(row.verdict in VERDICTS[:2] for row in aimed)
        share = f"{good / len(aimed):.0%}" if aimed else "-"
        cells = " | ".join(str(counts[verdict]) for verdict in VERDICTS)
        lines.append(f"| {peer or 'all'} | {len(own)} | {cells} | {len(aimed)} | {share} |")
    every: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    for row in rows:
        every.update(row.blocking)
        alone.update(row.blocking if len(row.blocking) == 1 else ())
    lines += ["", "| what blocks most | configurations | alone |", "|---|---|---|"]
    lines += [f"| {what} | {n} | {alone[what]} |" for what, n in every.most_common(25)]
    return "\n".join(lines)


# Trainers that exist here, though their files cannot be imported yet.
_HERE = tuple(f"trainer {name}" for name in (
    "sft", "dpo", "orpo", "kto", "cpo", "rm", "reward", "ppo", "ppo_tldr", "grpo", "rloo", "gkd",
))  # fmt: skip


def _foreign(row: Row) -> bool:
    named = [what for what in row.blocking if what not in _HERE]
    return any(what.startswith(_OTHER_METHODS) for what in named)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", metavar="PAGE", help="put the tables into a page")
    parser.add_argument("--peer", help="only this peer's")
    asked = parser.parse_args()
    path = os.environ.get("LLMFT_PEER_CONFIGS")
    if not path:
        print("LLMFT_PEER_CONFIGS names no file; nothing is measured")
        return 0
    started = time.perf_counter()
    registry = Registry.discover()
    items = [i for i in configurations(path) if i["peer"] in PEERS]
    items = [i for i in items if asked.peer in (None, i["peer"])]
    found = [judged(item, registry) for item in items]
    text = tables(items, [row for row, _ in found])
    written = sum(was_written for _, was_written in found)
    seconds = time.perf_counter() - started
    print(text)
    print(
        f"\n{written} recipes were written, and each was loaded; {seconds:.1f} s", file=sys.stderr
    )
    if asked.write:
        page = Path(asked.write)
        whole = page.read_text("utf-8")
        head, rest = whole.split(BEGIN)
        tail = rest.split(END)[1]
        page.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
