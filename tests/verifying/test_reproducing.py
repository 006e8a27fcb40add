"""`llmft reproduce`: a finished run is run again from its folder, and held against itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmft.cli.main import main
from llmft.engine.session import run_recipe
from llmft.modeling.tiny_models import tiny_model_folder
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.system import fsio, hub_commits


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("original")
    rows = [{"prompt": f"say {n}:", "completion": f" {n % 7}"} for n in range(12)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "recipe": 1,
        "name": "tiny",
        "output_dir": str(place / "runs"),
        "model": {"path": str(tiny_model_folder(place))},
        "stages": [
            {
                "name": "sft",
                "adapter": {"method": "lora", "r": 2, "lora_dropout": 0.1},
                "alignment": {"method": "sft"},
                "data": {"method": "jsonl", "path": str(place / "rows.jsonl")},
                "train": {"max_steps": 3, "per_device_train_batch_size": 2, "logging_steps": 1},
                "evaluate": {"metrics": ["loss"], "holdout": 0.25},
            }
        ],
        "trackers": [{"method": "jsonl"}],
    }
    (place / "r.yaml").write_text(json.dumps(recipe))
    return run_recipe(load_recipe(place / "r.yaml", Registry.discover())).folder


@pytest.fixture
def run(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / original.name))


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_on_the_same_machine_it_is_the_same_to_the_bit(run, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(hub_commits, "begin_as_in", asked.append)
    assert main(["reproduce", str(run), "--json"]) == 0
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert said["bit_exact"]
    assert said["largest_difference"] == 0
    assert "this machine is as the run's" in err
    compared = {f["what"]: f["compared"].split()[0] for f in said["compared"]}
    assert compared == {
        "rows": "2", "losses": "3", "scores": "2", "weights": "28", "answers": "1",
    }  # fmt: skip
    assert [path.name for path in run.parent.iterdir()] == [run.name]
    assert asked[-1] == run  # the hub's names mean what they meant to the run


def test_other_weights_are_told_and_the_second_run_is_kept(run, capsys):
    path = run / "stages/sft/adapter/adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name] = tensors[name] + torch.tensor(2.0**-10)
    save_file(tensors, path, metadata={"format": "pt"})
    assert main(["reproduce", str(run)]) == 6
    err = capsys.readouterr().err
    assert "error[E409]" in err
    assert "by up to 0.00098" in err
    (kept,) = (path for path in run.parent.iterdir() if path.name != run.name)
    assert f"it is in '{kept}" in err


@pytest.mark.parametrize(("tolerance", "code"), [(None, 6), ("1e-4", 6), ("0.01", 0)])
def test_losses_may_be_as_far_apart_as_is_said(run, tolerance, code, capsys):
    path = run / "stages/sft/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    first = next(line for line in lines if line["phase"] == "train")
    first["loss"] += 0.002 * first["loss"]  # above 1: as a share of itself
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [] if tolerance is None else ["--tolerance", tolerance]
    assert main(["reproduce", str(run), *words]) == code
    said = capsys.readouterr()
    assert "step 1" in said.out + said.err
    assert "0.002" in said.out + said.err


def test_rows_and_answers_of_another_kind_are_told(run, capsys):
    change(run / "lock.json", '"train": "', '"train": "0')
    (run / "stages/sft/samples.jsonl").write_text("{}\n")
    assert main(["reproduce", str(run)]) == 6
    err = capsys.readouterr().err
    assert "sft: rows; sft: answers" in err


def test_what_differs_here_is_told_before_anything_is_run(run, capsys, monkeypatch):
    def unwanted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llmft.engine.session.run_recipe", unwanted)
    lock = fsio.read_json(run / "lock.json", "")
    lock["packages"]["peft"] = "0.1.0"
    (run / "lock.json").write_text(json.dumps(lock))
    main(["reproduce", str(run)])
    assert "not as here: peft 0.1.0 -> " in capsys.readouterr().err


def test_a_run_without_an_end_and_a_smoke_test_are_refused(run, capsys):
    change(run / "run.json", "{", '{"smoke": true,')
    assert main(["reproduce", str(run)]) == 6
    assert "was a smoke test" in capsys.readouterr().err
    (run / "stages/sft/result.json").unlink()
    change(run / "run.json", '"smoke": true,', "")
    assert main(["reproduce", str(run)]) == 6
    assert "has not finished its stage 'sft'" in capsys.readouterr().err


def test_the_packages_are_written_as_pip_reads_them(run, tmp_path, capsys):
    lock = fsio.read_json(run / "lock.json", "")
    lock["packages"] = {"torch": "2.13.0+cu130", "peft": "0.21.2", "bitsandbytes": None}
    lock["plugins"].append({"kind": "reward", "method": "x", "distribution": "llmft-mine",
                            "version": "3.0", "sha256": ""})  # fmt: skip
    (run / "lock.json").write_text(json.dumps(lock))
    file = tmp_path / "requirements.txt"
    assert main(["reproduce", str(run), "--write-requirements", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: 4 packages\n"
    first, *rest = file.read_text().splitlines()
    assert first.startswith("# Python 3.")
    assert rest == [
        "llmft==0.1.0", "llmft-mine==3.0", "torch==2.13.0  # built as 2.13.0+cu130", "peft==0.21.2",
    ]  # fmt: skip
    assert main(["reproduce", str(run), "--write-requirements", str(file)]) == 2


@pytest.mark.parametrize("package", ["evil @ https://host/x.whl", "-r", "a\n--index-url x", 3])
def test_a_lock_that_would_make_pip_read_something_else_is_refused(package, run, tmp_path, capsys):
    lock = fsio.read_json(run / "lock.json", "")
    lock["packages"] = {"torch": package}
    (run / "lock.json").write_text(json.dumps(lock))
    file = tmp_path / "requirements.txt"
    assert main(["reproduce", str(run), "--write-requirements", str(file)]) == 6
    assert "error[E401]" in capsys.readouterr().err
    assert not file.exists()
