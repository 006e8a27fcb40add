"""Models and data sets from a hub, through the real client, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import TOKEN

OLD, NEW, DATA = "1" * 40, "2" * 40, "3" * 40
RECIPE = """
recipe: 1
name: {name}
output_dir: {folder}/runs
model: {{path: org/tiny{revision}}}
stages:
  - name: sft
    adapter: {{method: lora, r: 2}}
    alignment: {{method: sft}}
    data: {{method: jsonl, path: org/rows}}
    train: {{max_steps: 1, per_device_train_batch_size: 2, logging_steps: 1}}
"""


@pytest.fixture
def filled(hub, model_folder, rows_file):
    """A hub with a model in two versions, the older one broken, and a data set."""
    files = {path.name: path.read_bytes() for path in model_folder.iterdir() if path.is_file()}
    hub.add("model", "org/tiny", files, OLD)
    hub.add("model", "org/tiny", {**files, "config.json": b"{}"}, NEW)
    card = b"---\nconfigs:\n- config_name: default\n  data_files: train.jsonl\n---\n"
    hub.add("dataset", "org/rows", {"train.jsonl": rows_file.read_bytes(), "README.md": card}, DATA)
    return hub


def recipe(folder: Path, name: str, revision: str = "") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(RECIPE.format(folder=folder, name=name, revision=revision))
    return str(path)


def runs(folder: Path, recipes: list[str], **env: str) -> list[dict]:
    """Run recipes as a user does, one after another in one process with a cache of its own."""
    code = (
        "import contextlib, io, json, sys\nfrom llmft.cli import main\n"
        "for recipe in sys.argv[1:]:\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "        code = main(['run', recipe])\n"
        "    print(json.dumps({'code': code, 'out': out.getvalue(), 'err': err.getvalue()}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *recipes],
        env={**os.environ, "HF_HOME": str(folder / "home"), **env},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def lock(folder: Path, name: str) -> list[dict]:
    (path,) = folder.glob(f"runs/{name}/*/lock.json")
    return json.loads(path.read_text())["hub"]


def test_what_a_hub_has_loads_is_written_down_and_is_there_when_the_network_is_not(
    filled, tmp_path
):
    pinned, newest = recipe(tmp_path, "pinned", f", revision: '{OLD}'"), recipe(tmp_path, "newest")
    first, broken = runs(tmp_path, [pinned, newest])
    assert first["code"] == 0, first["err"]
    stands_on = [
        {"kind": "model", "name": "org/tiny", "revision": OLD, "commit": OLD},
        {"kind": "dataset", "name": "org/rows", "revision": None, "commit": DATA},
    ]
    assert lock(tmp_path, "pinned") == stands_on
    assert "note: dataset 'org/rows' has no commit as its revision" in first["out"]
    assert "note: model 'org/tiny'" not in first["out"]
    for path in (tmp_path / "runs").rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes()
    # The newest commit is broken: a revision that is not heeded would have failed above, too.
    assert broken["code"] == 4
    assert "error[E201] cannot load 'org/tiny'" in broken["err"]

    asked = len(filled.asked)
    again = recipe(tmp_path, "again", f", revision: '{OLD}'")
    absent = recipe(tmp_path, "absent", ", tokenizer: org/absent")
    Path(absent).write_text(Path(absent).read_text().replace("org/tiny", "org/absent"))
    cached, missing = runs(tmp_path, [again, absent], HF_HUB_OFFLINE="1")
    assert cached["code"] == 0, cached["err"]
    assert lock(tmp_path, "again") == stands_on
    assert missing["code"] == 4
    assert missing["err"].startswith("error[E201] cannot load 'org/absent'")
    assert "fix: try: hf download org/absent" in missing["err"]
    assert len(filled.asked) == asked


def test_a_branch_that_moves_is_written_down_as_what_it_was(filled, monkeypatch, tmp_path):
    import huggingface_hub.constants as constants
    from huggingface_hub import hf_hub_download

    from llmft.sharing import hub as ours

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert ours._commit("model", "org/tiny", None) is None
    hf_hub_download("org/tiny", "config.json", endpoint=filled.url, cache_dir=tmp_path)
    assert ours._commit("model", "org/tiny", None) == NEW
    assert ours._commit("model", "org/tiny", "main") == NEW
