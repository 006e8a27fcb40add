"""Every causal model, trained by llmft for two steps and held against plain transformers and PEFT.

    python benchmarks/training_matrix/run.py --results FILE [--part 1/2] [--only KIND ...]

Each model type of the installed transformers, as a tiny random model; lora, dora, prefix and
prompt; sft, dpo, reward and ppo; with dropout and without; rows laid end to end and padded. Losses
of both steps, and what they made of the weights, are those of each row alone in plain transformers
and PEFT, or the cell is refused before weights are loaded. A cell that stands in FILE is not run
again. `--covering` runs those that show every pair of settings of a model type; `--page` writes
the page from FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def main() -> int:
    """Run what is asked for and is not yet done; leave with 1 where a cell is not right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, help="where outcomes stand, a line each")
    parser.add_argument("--part", default="1/1", help="2/3: the second of three parts")
    parser.add_argument("--only", nargs="+", help="model types")
    parser.add_argument("--covering", action="store_true", help="only every pair of settings")
    parser.add_argument("--minutes", type=float, help="begin no cell after so many minutes")
    parser.add_argument("--again", nargs="+", default=[], help="states that are run once more")
    parser.add_argument("--page", type=Path, help="write the page from the results, and run none")
    asked = parser.parse_args()
    if asked.page:
        from matrix_page import page

        asked.page.write_text(page(read(asked.results)), "utf-8")
        return 0
    return 1 if run(asked) else 0


def run(asked: Any) -> int:
    """Run cells; return how many are not right."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore")
    from llmft.system.quiet import before_upstream

    before_upstream()
    import torch
    from by_llmft import Bench

    torch.set_num_threads(1)
    done = {
        key: line
        for line in (read(asked.results) if asked.results else [])
        if line["state"] not in asked.again
        for key in [_key(line)]
    }
    started, bad, count = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(prefix="llmft-matrix-", dir=_in_memory()) as folder:
        os.environ["LLMFT_CACHE"] = str(Path(folder) / "cache")
        bench = Bench(Path(folder))
        for cell in cells(asked):
            if _key(asdict(cell)) in done:
                continue
            if asked.minutes and time.monotonic() - started > 60 * asked.minutes:
                break
            begun = time.monotonic()
            outcome = bench.run(cell)
            line = {**asdict(cell), **asdict(outcome)}
            line["seconds"] = round(time.monotonic() - begun, 2)
            if asked.results:
                with asked.results.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
            count += 1
            wrong = outcome.state in ("wrong", "failed", "late", "no referee")
            bad += wrong
            if wrong or not asked.results or count % 100 == 0:
                print(f"{count} {line['seconds']} s {cell}: {outcome.state} {outcome.reason}",
                      flush=True)  # fmt: skip
    print(f"{count} cells in {time.monotonic() - started:.0f} s, {bad} not right", flush=True)
    return bad


def cells(asked: Any) -> list[Any]:
    """Return the cells of this part of what is asked for; of `only`, in its order."""
    from tiny_folders import model_types, same_as
    from training_cells import covering, in_order

    kinds = [kind for kind in model_types() if not same_as(kind)]
    chosen = covering(kinds) if asked.covering else list(in_order(kinds))
    if asked.only:
        place = {kind: number for number, kind in enumerate(asked.only)}
        chosen = sorted((c for c in chosen if c.kind in place), key=lambda c: place[c.kind])
        kinds = asked.only
    number, parts = map(int, asked.part.split("/"))
    own = set(kinds[number - 1 :: parts])
    return [cell for cell in chosen if cell.kind in own]


def read(path: Path) -> list[dict[str, Any]]:
    """Return the outcomes of a file; of a cell that stands in it twice, the last."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return list({_key(line): line for line in lines}.values())


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[n] for n in ("kind", "adapter", "alignment", "dropout", "padding_free"))


def _in_memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() and "TMPDIR" not in os.environ else None


if __name__ == "__main__":
    sys.exit(main())
