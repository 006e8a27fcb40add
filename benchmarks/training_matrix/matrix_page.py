"""The page of the matrix: what came of each model type, adapter by adapter, and the counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from training_cells import ADAPTERS, ALIGNMENTS, of_kind

STATES = {
    "works": "works",
    "works padded": "works padded",
    "refused": "refused",
    "late": "refused after weights were loaded",
    "wrong": "wrong",
    "failed": "failed",
    "no referee": "plain PEFT fails",
    "not tried": "no tiny model",
}
RIGHT = ("works", "works padded", "refused")


def page(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of these outcomes."""
    import transformers
    from tiny_folders import model_types, same_as

    kinds = model_types()
    twins = {kind: twin for kind in kinds if (twin := same_as(kind))}
    cells = sum(len(of_kind(kind)) for kind in kinds if kind not in twins)
    counts = Counter(line["state"] for line in lines)
    tried = {line["kind"] for line in lines}
    told = "; ".join(f"{counts[s]:,} {words}" for s, words in STATES.items() if counts[s])
    by_kind: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        by_kind[line["kind"]].append(line)
    rows = []
    for kind in kinds:
        if kind in twins:
            rows.append(f"| `{kind}` | 0 | as `{twins[kind]}` |  |  |  |  |")
        else:
            rows.append(_row(kind, by_kind.get(kind, [])))
    reasons = Counter(
        (STATES[line["state"]], _said(line)) for line in lines if line["state"] not in RIGHT[:2]
    )
    why = [f"| {count} | {state} | {said} |" for (state, said), count in reasons.most_common()]
    return f"""# Training on every architecture

Each causal model of transformers {transformers.__version__}, as a tiny random model, is trained
by llmft for two steps from a recipe: {", ".join(ADAPTERS)}; {", ".join(ALIGNMENTS)}; with dropout
and without; padding-free where that is allowed, and padded. Then plain transformers
and PEFT take the same two steps, each row alone, from the files of the untrained adapter: the
losses of both steps have to be the same to a thousandth, PPO's sampled tokens as likely, and what
the steps added to the weights, as llmft saved them, the same to a hundredth of its length. A cell
that does not work has to be refused by name before weights are loaded.

That makes {cells:,} cells, 64 of each of {len(kinds) - len(twins)} model types; {len(twins)} more
types load as one of these.
**Run so far: {len(lines):,} cells of {len(tried)} types.** Of these: {told}.

Dropout is compared too: in this program alone, every dropout loses the same features wherever a row
lies; attention's own weights keep all, on both sides.

```text
cd benchmarks/training_matrix
python run.py --results ../../docs/training-matrix.jsonl --covering   # every pair of settings
python run.py --results ../../docs/training-matrix.jsonl              # all
python run.py --results ../../docs/training-matrix.jsonl --page ../../docs/training-matrix.md
```

A cell that stands in the file is not run again. `--part 1/4` takes a part of the types. A figure is
how many of the adapter's cells came out so.

| model type | run | {" | ".join(ADAPTERS)} | why |
|---|---|{"---|" * len(ADAPTERS)}---|
{chr(10).join(rows)}

## What does not work, and why

| cells | what | reason |
|---|---|---|
{chr(10).join(why)}
"""


def _row(kind: str, lines: Sequence[Mapping[str, Any]]) -> str:
    columns = []
    for adapter in ADAPTERS:
        own = Counter(line["state"] for line in lines if line["adapter"] == adapter)
        told = ", ".join(f"{STATES[s]} {own[s]}" for s in STATES if own[s])
        columns.append(told or "not yet run")
    why = dict.fromkeys(_said(line) for line in lines if line["state"] not in RIGHT[:2])
    return f"| `{kind}` | {len(lines)} | {' | '.join(columns)} | {'; '.join(why)} |"


def _said(line: Mapping[str, Any]) -> str:
    return str(line["reason"]).replace("|", "/").replace("\n", " ")
