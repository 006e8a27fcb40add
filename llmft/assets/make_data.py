"""Data making: `python -m llmft.assets.make_data` writes the embedded data sets anew."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from llmft.assets.facts import Fact
from llmft.assets.manners import manner_rows
from llmft.assets.preferences import preference_row
from llmft.assets.remarks import remark_rows
from llmft.assets.trivia import Row, lot, prompt, split, trivia_row

DATA_FOLDER = Path(__file__).parent / "data"
SEED = 1
PREFERENCES_TRAIN = 1200
PREFERENCES_EVAL = 300
PROMPTS = 600


def _pick(facts: Sequence[Fact], count: int, seed: int, purpose: str) -> list[Fact]:
    return sorted(facts, key=lambda fact: lot(seed, purpose, fact))[:count]


def make_rows(seed: int) -> dict[str, list[Row]]:
    """Return the rows of every data file; held-out facts appear only in the eval files."""
    train, held_out = split(seed)
    return {
        "trivia_train": [trivia_row(seed, fact) for fact in train],
        "trivia_eval": [trivia_row(seed, fact) for fact in held_out],
        "preferences_train": [
            preference_row(seed, fact) for fact in _pick(train, PREFERENCES_TRAIN, seed, "pairs")
        ],
        "preferences_eval": [
            preference_row(seed, fact) for fact in _pick(held_out, PREFERENCES_EVAL, seed, "pairs")
        ],
        "remarks_train": list(remark_rows(seed, train)),
        "remarks_eval": list(remark_rows(seed, held_out)),
        "manners_train": list(manner_rows(seed, train)),
        "manners_eval": list(manner_rows(seed, held_out)),
        "prompts": [
            {
                "prompt": prompt(seed, fact),
                "answer": fact.answer,
                "aliases": list(fact.accepted),
            }
            for fact in _pick(train, PROMPTS, seed, "prompts")
        ],
    }


def write_data(seed: int, folder: Path) -> dict[str, int]:
    """Write every data file and return its number of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    made = make_rows(seed)
    for name, rows in made.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_bytes("".join(lines).encode("utf-8"))
    return {name: len(rows) for name, rows in made.items()}


def main() -> None:
    """Write the data files and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=DATA_FOLDER)
    chosen = parser.parse_args()
    for name, rows in write_data(chosen.seed, chosen.out).items():
        print(f"{name}.jsonl  {rows} rows")


if __name__ == "__main__":
    main()
