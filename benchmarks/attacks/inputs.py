"""The inputs before they are changed, and what reads each kind: llmft's own code, as in a run."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import sys
from pathlib import Path

RECIPE = {
    "recipe": 1,
    "name": "tiny",
    "output_dir": "runs",
    "model": {"path": "m"},
    "stages": [
        {
            "name": "sft",
            "adapter": {"method": "lora", "r": 2},
            "alignment": {"method": "sft"},
            "data": {"method": "jsonl", "path": "rows.jsonl"},
            "train": {
                "max_steps": 4, "per_device_train_batch_size": 2, "save_strategy": "steps",
                "save_steps": 2,
            },
        }
    ],
    "trackers": [{"method": "jsonl"}],
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ROWS = [{"prompt": f"say {n}:", "completion": f" {n % 7}"} for n in range(8)]
SAMPLES = [{"prompt": f"p{n}", "completions": ["a", "b", "c"], "answers": []} for n in range(4)]


def make(place: Path) -> Path:
    """Make a folder of each kind of input, and return the folder that holds them."""
    import shutil

    from llmft.engine.session import run_recipe
    from llmft.modeling.tiny_models import tiny_model_folder, tiny_tokenizer
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry
    from llmft.system.signals import Interrupted  # noqa: F401 - imported before any fork

    base = place / "base"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    base.mkdir(parents=True)
    folder = tiny_model_folder(base / "made", tokenizer=tokenizer)
    shutil.move(folder, base / "m")
    shutil.rmtree(base / "made", ignore_errors=True)
    (base / "m" / "generation_config.json").write_text('{"eos_token_id": 2, "do_sample": false}')
    _lines(base / "rows.jsonl", ROWS)
    (base / "r.yaml").write_text(json.dumps(RECIPE))
    here = os.getcwd()
    os.chdir(base)
    try:
        run_recipe(load_recipe("r.yaml", Registry.discover()))
    finally:
        os.chdir(here)
    (run,) = (base / "runs/tiny").iterdir()
    run.rename(base / "run")
    shutil.rmtree(base / "runs")
    for kind in ("model", "tokenizer"):
        shutil.copytree(base / "m", place / kind)
    for kind in ("run", "adapter", "checkpoint"):
        shutil.copytree(base, place / kind)
    _make_ratings(place / "ratings")
    _make_data(place / "data")
    return place


def _lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _make_ratings(folder: Path) -> None:
    from llmft.ranking import read_samples
    from llmft.ranking.log import rater_log
    from llmft.ranking.ratings import Decision

    (folder / "ratings").mkdir(parents=True)
    _lines(folder / "s.jsonl", SAMPLES)
    for rater in ("ann", "bob"):
        with rater_log(folder / "ratings", rater) as log:
            for sample in read_samples(folder / "s.jsonl")[:3]:
                log.add(Decision(sample.id, ((0,), (1, 2)), False, "2026-01-01T00:00:00", 2.0))


def _make_data(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    _lines(folder / "data.jsonl", ROWS)
    (folder / "data.json").write_text(json.dumps(ROWS))
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "completion"])
    writer.writeheader()
    writer.writerows(ROWS)
    (folder / "data.csv").write_text(text.getvalue())
    for name in ("data.jsonl", "data.json", "data.csv"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    for packing in ("snappy", "zstd", "gzip"):
        table = pyarrow.Table.from_pylist(ROWS)
        parquet.write_table(table, folder / f"data.{packing}.parquet", compression=packing)


def use(kind: str, dice: float) -> str:
    """Read an input in the working folder; return right, or fault and its code, or bug."""
    from llmft.api.errors import LlmftError

    try:
        return _USES[kind](dice)
    except LlmftError as error:
        return _fault(error.faults[0].code)


def _fault(code: str) -> str:
    return f"bug {code}" if code == "E900" else f"fault {code}"


def _model(dice: float) -> str:
    import torch

    from llmft.api import ChatRow, CompletionRow
    from llmft.api.settings import ModelSource, TrainSettings
    from llmft.data.encoding import Encoder
    from llmft.modeling.base_model import BaseModel, locate_model
    from llmft.system.architectures import architecture_of

    source = ModelSource(path=".")
    architecture_of(".")
    locate_model(".")
    tokenizer = BaseModel(source).tokenizer
    turns = tuple({"role": r, "content": "xx xx"} for r in ("user", "assistant"))
    rows = [CompletionRow("xxxxxxxxxxxxxxxxxxxxxxxx", "a"), ChatRow(turns)]
    encoded, _ = Encoder(tokenizer, 64).encode(rows, TrainSettings(max_dropped=1.0))
    BaseModel(source).empty()
    model = BaseModel(source).load({}, varlen=False)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = [token % vocabulary for token in encoded[0].input_ids][:16]
    with torch.no_grad():
        model(torch.tensor([ids]))
    return "right"


def _main(*words: str) -> str:
    """Return what a command line comes to, by its exit code and what it says."""
    from llmft.cli.main import main

    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = main(list(words))
    said = told.getvalue()
    if "Traceback" in said or "E900" in said or code == 1:
        sys.stderr.write(said)
        return f"bug {said[-300:]}"
    return "right" if code == 0 else _fault(f"exit {code}")


def _run(dice: float) -> str:
    if dice < 0.4:
        return _main("run", "r.yaml", "run", "--resume")
    if dice < 0.6:
        return _main("rank", "run", "--status")
    return _main("generate", "run", "What?")


def _checkpoint(dice: float) -> str:
    import shutil

    # As a run that was killed: its last stage is not finished.
    with contextlib.suppress(OSError):
        shutil.rmtree("run/stages/sft/adapter")
    with contextlib.suppress(OSError):
        os.unlink("run/stages/sft/result.json")
    return _main("run", "r.yaml", "run", "--resume")


def _ratings(dice: float) -> str:
    if dice < 0.4:
        return _main("rank", "s.jsonl", "--status")
    if dice < 0.7:
        return _main("rank", "s.jsonl", "--export", "pairs.jsonl")
    sys.stdin = io.StringIO("a>b>c\nquit\n")
    return _main("rank", "s.jsonl", "--rater", "bob", "--terminal")


def _data(dice: float) -> str:
    from llmft.data.tables import read_file

    outcomes = set()
    from llmft.api.errors import LlmftError

    for path in sorted(Path().iterdir()):
        try:
            for _ in read_file(path):
                pass
        except LlmftError as error:
            outcomes.add(error.faults[0].code)
    return _fault(sorted(outcomes)[-1]) if outcomes else "right"


_USES = {
    "model": _model, "tokenizer": _model, "run": _run, "adapter": _run, "checkpoint": _checkpoint,
    "ratings": _ratings, "data": _data,
}  # fmt: skip
