"""The section of docs/ppo.md that says how PPO compares with TRL's, and the picture in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from picture import curves
from verdict import HEAD, cells

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- ppo_trl:begin -->", "<!-- ppo_trl:end -->"
TEXT = """\
`python benchmarks/ppo_trl/run.py --trl-python ...`, on one thread, float32. Both sides start from
the same policy, a fresh LoRA on it, take the same prompts in the same order with the same settings
of PPO, and are judged by one piece of code. TRL 1.12 is the last that has PPO; it takes part as its
own examples have it, with a whole value model, and with a value model of which only a LoRA and its
head are trained. Its reference is its policy with the adapter off. Each run is a fresh process,
contestants took turns, and {seeds} seeds were run; figures are medians, a spread goes from the
least to the most, and x is TRL's figure over llmft's.

- `remarks`: the embedded model is to say welcome remarks, by a reward model that was trained on
  pairs; `slowly` is the same at a third of the learning rate.
- `wide`: a random Llama of 15 million parameters with a vocabulary of 32,000, for speed and
  memory only.
- *score*: the mean over the episodes of training, so what was reached early counts; those of the
  first step, sampled before any update, are left out. *held out*: the same for answers to
  held-out prompts after the last step, at temperature 1. KL: of these answers from the start, in
  nats.

{table}

![The mean score of each step](ppo_trl.svg)
"""


def write_section(results: list[dict[str, Any]]) -> None:
    """Write the section between its markers, at the page's end where there are none yet.

    Raises SystemExit where there is no such page.
    """
    page = DOCS / "ppo.md"
    if not page.is_file():
        raise SystemExit(f"there is no '{page}' to write the section into")
    text = page.read_text("utf-8")
    made = f"{BEGIN}\n{section(results)}{END}"
    if BEGIN in text:
        before, _, rest = text.partition(BEGIN)
        text = before + made + rest.partition(END)[2]
    else:
        text = f"{text.rstrip()}\n\n## Beside TRL\n\n{made}\n"
    page.write_text(text, "utf-8")
    (DOCS / "ppo_trl.svg").write_text(curves(results), "utf-8")


def section(results: list[dict[str, Any]]) -> str:
    """Return the text and the table."""
    head = [name for name, _ in HEAD]
    lines = [head, ["---"] * len(head), *(row for result in results for row in cells(result))]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    seeds = len(next(iter(results[0]["taken"].values())))
    return TEXT.format(seeds=seeds, table=table)
