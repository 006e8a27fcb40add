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

import talks

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
# Other tools' configurations: what LLaMA-Factory, axolotl, TRL and oumi read.
CONFIGURATIONS = {
    "factory.yaml": {
        "model_name_or_path": "m", "stage": "sft", "finetuning_type": "lora", "lora_rank": 2,
        "lora_target": "all", "dataset": "mine", "dataset_dir": "data", "template": "llama3",
        "cutoff_len": 64, "per_device_train_batch_size": 2, "learning_rate": 1e-4, "bf16": True,
        "output_dir": "out",
    },
    "axolotl.yaml": {
        "base_model": "m", "adapter": "lora", "lora_r": 2, "lora_alpha": 4, "micro_batch_size": 2,
        "lora_target_modules": ["q_proj"], "sequence_len": 64, "num_epochs": 1, "optimizer": "x",
        "datasets": [{"path": "data/rows.json", "type": "alpaca", "ds_type": "json"}],
        "rl": None, "trl": {"reward_funcs": ["rewards.score"]}, "plugins": ["x.Plugin"],
        "chat_template_jinja": "{{ messages }}", "output_dir": "./${NAME}",
    },
    "oumi.yaml": {
        "model": {"model_name": "m", "trust_remote_code": True, "tokenizer_kwargs": {"a": 1}},
        "data": {"train": {"datasets": [{"dataset_name": "x", "dataset_path": "data/rows.json"}]}},
        "training": {"trainer_type": "TRL_SFT", "use_peft": True, "max_steps": 2},
        "peft": {"lora_r": 2, "lora_target_modules": ["q_proj"]},
    },
}  # fmt: skip
COMMANDS = """python examples/scripts/sft.py \\
    --model_name_or_path m --dataset_name d --use_peft --lora_r 2 --output_dir "$OUT"
NPROC_PER_NODE=2 swift sft --model m --dataset 'a#10' --tuner_type lora --reward_funcs f.py
trl grpo --model_name_or_path m --reward_funcs rewards.score --dataset_name d
"""
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
    for kind in ("run", "adapter", "checkpoint", "export", "recipe"):
        shutil.copytree(base, place / kind)
    _kill(place / "checkpoint", run.name)
    _export(place / "export")
    _make_ratings(place / "ratings")
    _make_data(place / "data")
    _make_configurations(place / "config")
    talks.make(place)
    return place


def _kill(folder: Path, name: str) -> None:
    """Leave a run as one that was killed before its end, under its own name, which is checked."""
    import shutil

    run = (folder / "run").rename(folder / name)
    shutil.rmtree(run / "stages/sft/adapter")
    (run / "stages/sft/result.json").unlink()


def _lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _export(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)
    try:
        for words in (["merge", "run", "--output", "merged"],
                      ["export", "run", "--to", "peft", "--output", "adapter"]):  # fmt: skip
            if (outcome := _main(*words)) != "right":
                raise RuntimeError(f"{words}: {outcome}")
    finally:
        os.chdir(here)


def _make_configurations(folder: Path) -> None:
    import yaml

    (folder / "data").mkdir(parents=True)
    for name, keys in CONFIGURATIONS.items():
        (folder / name).write_text(yaml.safe_dump(keys))
    (folder / "train.sh").write_text(COMMANDS)
    rows = [{"instruction": "a", "input": "", "output": "b"}]
    (folder / "data/rows.json").write_text(json.dumps(rows))
    described = {"mine": {"file_name": "rows.json", "columns": {"prompt": "instruction"}}}
    (folder / "data/dataset_info.json").write_text(json.dumps(described))
    reward = "import os\nos.system('touch RAN')\ndef score(**kwargs): return [0.0]\n"
    for name in ("rewards.py", "f.py", "x.py"):
        (folder / name).write_text(reward)


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
    from llmft.api.model_settings import ModelSource
    from llmft.api.train_settings import TrainSettings
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


# What is done with a folder of a run; each reads other files of it.
_WITH_A_RUN = (
    ("run", "r.yaml", "run", "--resume"),
    ("rank", "run", "--status"),
    ("generate", "run", "What?", "--max-new-tokens", "2"),
    ("chat", "run", "--message", "/set seed=1", "--message", "What?", "--max-new-tokens", "2"),
    ("evaluate", "run", "--data", "rows.jsonl", "--metrics", "loss", "--output", "scores.jsonl"),
    ("evaluate", "run", "--data", "rows.jsonl", "--metrics", "loss", "--step", "2"),
    ("report", "run", "--data", "curves.csv"),
    ("runs", "."),
    ("compare", "run", "run", "--output", "page.html"),
    ("merge", "run", "--output", "merged"),
    ("export", "run", "--to", "vllm", "--output", "out"),
)


def _run(dice: float) -> str:
    return _main(*_WITH_A_RUN[int(dice * len(_WITH_A_RUN))])


def _exported(dice: float) -> str:
    target = "merged" if dice < 0.5 else "adapter"
    return _main("verify", "export", "run", target, "--prompts", "1", "--max-new-tokens", "2")


def _config(dice: float) -> str:
    if dice < 0.2:
        return _main("import", "--check", ".")
    files = (*CONFIGURATIONS, "train.sh")
    words = ("--anyway",) if dice < 0.6 else ("--number", "2")
    return _main("import", files[int(dice * 1000) % len(files)], *words, "--output", "new.yaml")


def _recipe(dice: float) -> str:
    if dice < 0.4:
        return _main("validate", "r.yaml", "--model")
    if dice < 0.6:
        return _main("plan", "r.yaml")
    if dice < 0.8:
        return _main("preview", "r.yaml", "--html", "rows.html")
    return _main("run", "r.yaml", "--quiet")


def _checkpoint(dice: float) -> str:
    (run,) = (path.name for path in Path().iterdir() if path.name.startswith("2"))
    return _main("run", "r.yaml", run, "--resume")


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
    "ratings": _ratings, "data": _data, "export": _exported, "config": _config, "recipe": _recipe,
    "served": talks.served, "endpoint": talks.asked,
}  # fmt: skip
