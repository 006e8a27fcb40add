"""Time and peak memory until the first step on raw text: python benchmarks/raw_text.py.

A .txt file is made of random words, and trained on for one step of chunks of 512 tokens: by
`llmft run`, and by TRL's SFTTrainer with packing_strategy: wrapped, each in a process of its own.
Both take the embedded model, so that nearly all of the time and memory is the data's.

    python benchmarks/raw_text.py --mb 20 100 --by paragraph document --who llmft trl
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

LENGTH = 512
TRL = """
import sys, datasets
from trl import SFTConfig, SFTTrainer
path, by, model, out, length = sys.argv[1:]
rows = datasets.load_dataset("text", data_files=path, sample_by=by, split="train", cache_dir=out)
args = SFTConfig(output_dir=out, max_length=int(length), packing=True, packing_strategy="wrapped",
    max_steps=1, per_device_train_batch_size=1, report_to=[], use_cpu=True, bf16=False,
    save_strategy="no", gradient_checkpointing=False)
trainer = SFTTrainer(model=model, args=args, train_dataset=rows)
print(len(trainer.train_dataset), "rows", flush=True)
trainer.train()
"""


def write_text(path: Path, megabytes: int) -> None:
    """Write so many MB of paragraphs of made-up words; the same each time."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(20_000)]
    with path.open("w") as file:
        while file.tell() < megabytes * 1e6:
            for _ in range(200):
                file.write(" ".join(draw.choices(words, k=draw.randint(40, 120))) + ".\n\n")


def measured(argv: list[str], folder: Path) -> tuple[float, float, str]:
    """Return the seconds and the peak of resident memory, in MB, of a process and its children."""
    started = time.monotonic()
    env = {**os.environ, "LLMFT_CACHE": "off", "HF_HUB_OFFLINE": "1"}
    with (folder / "out.txt").open("w") as out:
        process = subprocess.Popen(argv, cwd=folder, stdout=out, stderr=out, env=env)
    peak, ended = [0.0], threading.Event()

    def watch() -> None:
        status = Path(f"/proc/{process.pid}/status")
        while not ended.wait(0.05):
            try:
                lines = status.read_text().splitlines()
            except OSError:
                return
            for line in lines:
                if line.startswith("VmHWM"):
                    peak[0] = max(peak[0], int(line.split()[1]) / 1e3)

    thread = threading.Thread(target=watch)
    thread.start()
    code = process.wait()
    ended.set()
    thread.join()
    text = (folder / "out.txt").read_text()
    if code:
        raise SystemExit(f"{argv[0]} ended with {code}:\n{text[-2000:]}")
    return time.monotonic() - started, peak[0], text


def of_llmft(path: Path, by: str, folder: Path) -> tuple[float, float, str]:
    """Return what one step takes with llmft."""
    stage = {
        "name": "pt", "adapter": {"method": "full"}, "alignment": {"method": "sft"},
        "data": {"method": "jsonl", "path": str(path), "columns": {"text": "text"},
                 "sample_by": by, "max_row_mb": 4096},
        "train": {"max_steps": 1, "max_length": LENGTH, "packing": True,
                  "packing_strategy": "wrapped", "per_device_train_batch_size": 1},
    }  # fmt: skip
    recipe = {"recipe": 1, "name": "raw", "model": {"path": "embedded:model"}, "stages": [stage]}
    (folder / "raw.yaml").write_text(json.dumps(recipe))
    return measured([sys.executable, "-m", "llmft", "run", "raw.yaml"], folder)


def of_trl(path: Path, by: str, folder: Path) -> tuple[float, float, str]:
    """Return what one step takes with TRL."""
    from llmft import assets

    model = str(assets.locate("model"))
    (folder / "by_trl.py").write_text(TRL)
    return measured(
        [sys.executable, "by_trl.py", str(path), by, model, str(folder / "c"), str(LENGTH)], folder
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--by", nargs="+", default=["paragraph", "document"])
    parser.add_argument("--who", nargs="+", default=["llmft", "trl"])
    asked = parser.parse_args()
    print(
        "| text | one text is a | by | seconds | peak memory |\n|---|---|---|---|---|", flush=True
    )
    for size in asked.mb:
        for by in asked.by:
            for who in asked.who:
                with tempfile.TemporaryDirectory() as name:
                    folder = Path(name)
                    write_text(folder / "text.txt", size)
                    run = of_llmft if who == "llmft" else of_trl
                    seconds, peak, _ = run(folder / "text.txt", by, folder)
                print(f"| {size} MB | {by} | {who} | {seconds:.0f} | {peak:,.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
