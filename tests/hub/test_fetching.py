"""`llmft fetch`: a recipe's model and data are in the cache, and a run needs no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.test_sources import DATA, NEW, OLD, filled, lock, python, recipe, run

__all__ = ["filled"]  # a fixture
CODE = "import sys\nfrom llmft.cli.main import main\nsys.exit(main(sys.argv[1:]))\n"


@pytest.fixture
def without_routes():
    """Return what runs a command in a network namespace without routes, where that is allowed."""
    unshare = ["unshare", "--map-root-user", "--net"]
    try:
        allowed = subprocess.run([*unshare, "true"], capture_output=True, check=False)
    except OSError:
        pytest.skip("there is no `unshare` here, so no network namespace can be made")
    if allowed.returncode:
        pytest.skip(f"no network namespace can be made here: {allowed.stderr.decode().strip()}")

    def ran(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*unshare, sys.executable, "-c", CODE, *words],
            env={**os.environ, "HF_HOME": str(folder / "home"), "HF_DATASETS_OFFLINE": "0"},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    return ran


@pytest.mark.extended
def test_what_was_fetched_last_is_what_a_run_without_routes_takes(filled, tmp_path, without_routes):
    path = recipe(tmp_path, "fetched", f", revision: '{OLD}'")
    rows = filled.files("dataset", "org/rows", "main")[1]
    cache = tmp_path / "home" / "hub"
    for commit in (DATA, "5" * 40):  # the data set moves on, and is fetched once more
        filled.add("dataset", "org/rows", rows, commit)
        found = run(tmp_path, ["fetch", path])
        assert found["code"] == 0, found["err"]
        model, data, last = found["out"].splitlines()
        assert model.startswith(f"model org/tiny at {OLD[:12]}: ")
        assert data.startswith(f"data set org/rows at {commit[:12]}: ")
        assert last == "a run of it needs no network"
    assert len(list((cache / "models--org--tiny").glob("snapshots/*/model*.safetensors"))) == 1
    assert not list(tmp_path.glob("runs/*"))

    done = without_routes(tmp_path, "run", path)
    assert done.returncode == 0, done.stderr
    assert [one["commit"] for one in lock(tmp_path, "fetched")] == [OLD, "5" * 40]


SPOIL = ["spoil"]


def answers(folder: Path, *commands: list[str]) -> list[dict]:
    """Run commands one after another in one process with a cache of its own.

    SPOIL changes the last bit of the weights in the cache.
    """
    code = (
        "import contextlib, io, json, os, sys\nfrom pathlib import Path\n"
        "from llmft.cli.main import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    if words == ['spoil']:\n"
        "        (path,) = Path(os.environ['HF_HOME']).rglob('models--*/**/model.safetensors')\n"
        "        held = bytearray(path.read_bytes())\n"
        "        held[-1] ^= 1\n"
        "        path.resolve().chmod(0o600)\n"
        "        path.write_bytes(held)\n"
        "        continue\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "        code = main(words)\n"
        "    print(json.dumps({'code': code, 'out': out.getvalue(), 'err': err.getvalue()}))\n"
    )
    return [json.loads(line) for line in python(folder, code, json.dumps(commands)).splitlines()]


def test_what_is_fetched_is_told_with_its_sums_and_what_a_run_still_contacts(filled, tmp_path):
    streamed = recipe(tmp_path, "streamed", f", revision: '{OLD}'")
    text = Path(streamed).read_text().replace("path: org/rows", "path: org/rows, streaming: true")
    trackers = "trackers: [{method: jsonl}, {method: wandb}]\n"
    Path(streamed).write_text(f"{text}push_to_hub: {{repo_id: me/mine}}\n{trackers}")
    absent = recipe(tmp_path, "absent", f", revision: '{NEW[::-1]}'")
    Path(absent).write_text(Path(absent).read_text().replace("org/tiny", "org/absent"))
    path = recipe(tmp_path, "whole", f", revision: '{OLD}'")
    words = [["fetch", one, "--json"] for one in (streamed, absent, path)]
    first, missing, whole, spoilt = answers(tmp_path, *words, SPOIL, ["fetch", path])

    assert first["code"] == 0, first["err"]
    found = json.loads(first["out"])
    told = found["still_contacted"]
    assert [one["name"] for one in found["fetched"]] == ["org/tiny"]  # and no rows
    assert "the rows of 'org/rows' are streamed over the network while it trains" in told
    assert "after the run, an adapter is uploaded to me/mine" in told
    assert any("tracker 'wandb' sends data to" in one for one in told)

    assert missing["code"] == 4
    assert "the hub has no model of that name" in missing["err"] + missing["out"]

    assert whole["code"] == 0, whole["err"]
    model, data = json.loads(whole["out"])["fetched"]
    assert (model["commit"], data["commit"]) == (OLD, DATA)
    assert (model["checked"], data["checked"]) == (model["files"], data["files"])
    assert model["size"] >= len(filled.files("model", "org/tiny", OLD)[1]["model.safetensors"])

    (weights,) = (tmp_path / "home").rglob(f"models--org--tiny/snapshots/{OLD}/model.safetensors")
    assert spoilt["code"] == 4
    assert "error[E215]" in spoilt["err"]
    assert "'model.safetensors' in the cache is not the file that the hub has" in spoilt["err"]
    assert f"delete {weights.resolve()}" in spoilt["err"]


def test_a_teacher_is_fetched_too_and_its_commit_is_the_run_s(filled, tmp_path, model_folder):
    files = {path.name: path.read_bytes() for path in model_folder.iterdir() if path.is_file()}
    filled.add("model", "org/large", files, "6" * 40)
    path = Path(recipe(tmp_path, "taught", f", revision: '{OLD}'"))
    teacher = "{method: gkd, teacher: {path: org/large}, max_new_tokens: 4}"
    path.write_text(path.read_text().replace("{method: sft}", teacher))
    found = run(tmp_path, ["fetch", str(path)])
    assert found["code"] == 0, found["err"]
    assert f"model org/large at {'6' * 12}: " in found["out"]
    done = run(tmp_path, ["run", str(path)])
    assert done["code"] == 0, done["err"]
    assert "model 'org/large' has no commit as its revision" in done["out"] + done["err"]
    commits = {one["name"]: one["commit"] for one in lock(tmp_path, "taught")}
    assert commits["org/large"] == "6" * 40
