"""Models and data sets from a hub, through the real client, in a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.fake_hub import TOKEN

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


def python(folder: Path, code: str, *words: str, **env: str) -> str:
    """Run code in a process with a cache of its own, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "HF_HOME": str(folder / "home"), "HF_DATASETS_OFFLINE": "0", **env},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(folder: Path, words: list[str], **env: str) -> dict:
    """Run one command as a user does, with a cache of its own."""
    code = (
        "import contextlib, io, json, sys\nfrom llmft.cli.main import main\n"
        "out, err = io.StringIO(), io.StringIO()\n"
        "with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "    code = main(sys.argv[1:])\n"
        "print(json.dumps({'code': code, 'out': out.getvalue(), 'err': err.getvalue()}))\n"
    )
    answer: dict = json.loads(python(folder, code, *words, **env).splitlines()[-1])
    return answer


def runs(folder: Path, recipes: list[str], **env: str) -> list[dict]:
    """Run recipes as a user does, one after another in one process with a cache of its own."""
    code = (
        "import contextlib, io, json, sys\nfrom llmft.cli.main import main\n"
        "for recipe in sys.argv[1:]:\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "        code = main(['run', recipe])\n"
        "    print(json.dumps({'code': code, 'out': out.getvalue(), 'err': err.getvalue()}))\n"
    )
    return [json.loads(line) for line in python(folder, code, *recipes, **env).splitlines()]


def lock(folder: Path, name: str) -> list[dict]:
    (path,) = folder.glob(f"runs/{name}/*/lock.json")
    return json.loads(path.read_text())["hub"]


def test_n4_a_hub_that_cannot_be_reached_is_told_within_seconds(tmp_path):
    """The client by itself tries for 23 seconds, and for each file anew."""
    code = (
        "import time\nfrom llmft.api.errors import LlmftError\nfrom llmft.data import hub_tables\n"
        "from llmft.system import hub_commits\nimport datasets, huggingface_hub.file_download\n"
        "began = time.monotonic()\n"
        "for ask in (lambda: hub_commits.of_model('org/model', None),\n"
        "            lambda: list(hub_tables.hub_records('org/rows', None, 'train', None))):\n"
        "    try:\n        ask()\n    except LlmftError as error:\n        print(error)\n"
        "print(time.monotonic() - began)\n"
    )
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    model, rows, seconds = python(tmp_path, code, **closed).splitlines()
    for text, fix in ((model, "hf download org/model"), (rows, "--repo-type dataset")):
        assert "E201" in text
        assert "the hub cannot be reached" in text
        assert fix in text
    assert float(seconds) < 12


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
    assert "model.path: cannot load 'org/tiny'" in broken["err"]

    asked = len(filled.asked)
    again = recipe(tmp_path, "again", f", revision: '{OLD}'")
    absent = recipe(tmp_path, "absent", ", tokenizer: org/absent")
    Path(absent).write_text(Path(absent).read_text().replace("org/tiny", "org/absent"))
    cached, missing = runs(tmp_path, [again, absent], HF_HUB_OFFLINE="1")
    assert cached["code"] == 0, cached["err"]
    assert lock(tmp_path, "again") == stands_on
    assert missing["code"] == 4
    assert "model.path: cannot load 'org/absent'" in missing["err"]
    assert "it is not complete in the cache, and HF_HUB_OFFLINE is set" in missing["err"]
    assert "its size is known only to the hub" in missing["err"]
    assert "fix: with network access: hf download org/absent" in missing["err"]
    assert len(filled.asked) == asked


@pytest.mark.slow
def test_n5_all_files_of_a_run_are_of_one_commit_though_the_branch_moves(filled, tmp_path):
    whole = filled.repos["model", "org/tiny"][OLD]
    filled.repos["model", "org/tiny"] = {OLD: whole}

    def moves(path: str) -> None:
        if "tokenizer" in path or "safetensors" in path:
            filled.add("model", "org/tiny", {**whole, "model.safetensors": b"other"}, NEW)

    filled.on_asked = moves
    first = run(tmp_path, ["run", recipe(tmp_path, "moving")])
    assert NEW in filled.repos["model", "org/tiny"]
    assert first["code"] == 0, first["err"]
    was = {"kind": "model", "name": "org/tiny", "revision": None, "commit": OLD}
    assert lock(tmp_path, "moving")[0] == was
    # What is done with the run later stands on the same base.
    (folder,) = tmp_path.glob("runs/moving/*")
    later = run(tmp_path, ["generate", str(folder), "say 3:"])
    assert later["code"] == 0, later["err"]


@pytest.mark.slow
def test_a_subset_in_parquet_loads_and_offline_what_was_downloaded_does(filled, tmp_path):
    train, judged = ([{"prompt": f"say {n}:", "completion": f" {n}"}] * 6 for n in (1, 2))
    card = b"---\nconfigs:\n- config_name: small\n  data_files:\n"
    for split in ("train", "validation"):
        card += f"  - {{split: {split}, path: small/{split}-*}}\n".encode()
    files = {
        "README.md": card + b"---\n",
        "small/train-00000-of-00001.parquet": parquet(train),
        "small/validation-00000-of-00001.parquet": parquet(judged),
    }
    filled.add("dataset", "org/parquet", files, DATA)
    path = recipe(tmp_path, "parquet", f", revision: '{OLD}'")
    text = Path(path).read_text().replace("path: org/rows", "path: org/parquet, subset: small")
    Path(path).write_text(text + "    evaluate: {metrics: [loss], split: validation}\n")
    online = run(tmp_path, ["run", path])
    assert online["code"] == 0, online["err"]
    assert "on 6 rows" in online["out"]
    assert lock(tmp_path, "parquet")[1]["commit"] == DATA

    fetched = tmp_path / "fetched"  # a machine that has only what `hf download` brings
    code = "from huggingface_hub import snapshot_download as get\n"
    code += f"get('org/parquet', repo_type='dataset'); get('org/tiny', revision='{OLD}')"
    python(fetched, code)
    asked = len(filled.asked)
    offline = run(fetched, ["run", path, "--output-dir", str(fetched)], HF_HUB_OFFLINE="1")
    assert offline["code"] == 0, offline["err"]
    assert "on 6 rows" in offline["out"]
    assert len(filled.asked) == asked


@pytest.mark.extended
def test_n4_offline_another_commit_than_the_one_asked_for_is_refused(filled, tmp_path):
    code = (
        "import sys\nfrom llmft.api.errors import EnvironmentFault\n"
        "from llmft.data.tables import read_records\n"
        "try:\n    print(len(list(read_records('org/rows', 'train', revision=sys.argv[1]))))\n"
        "except EnvironmentFault as error:\n    print(error)\n"
    )
    assert python(tmp_path, code, DATA) == "20\n"
    assert python(tmp_path, code, DATA, HF_HUB_OFFLINE="1") == "20\n"
    refused = python(tmp_path, code, "9" * 40, HF_HUB_OFFLINE="1")
    assert "commit 99999999 is needed, and the cache has 33333333" in refused
    assert f"hf download --repo-type dataset org/rows --revision {'9' * 40}" in refused


@pytest.mark.extended
def test_n4_a_data_set_comes_from_the_cache_where_nobody_answers_and_else_is_named(
    filled, tmp_path
):
    code = (
        "import sys, time\nfrom llmft.api.errors import EnvironmentFault\n"
        "from llmft.data.tables import read_records\n"
        "time.sleep = lambda seconds: None  # the client's, between its tries\n"
        "try:\n    print(len(list(read_records(sys.argv[1], 'train'))))\n"
        "except EnvironmentFault as error:\n    print(error)\n"
    )
    assert python(tmp_path, code, "org/rows") == "20\n"
    filled.close()  # no offline switch: the address is asked, and refuses
    assert python(tmp_path, code, "org/rows") == "20\n"
    told = python(tmp_path, code, "org/absent")
    assert "the data set 'org/absent': it is not complete in the cache, and the hub cannot" in told
    assert "hf download org/absent --repo-type dataset" in told


@pytest.mark.extended
def test_n4_offline_weights_that_are_missing_are_named_with_their_size(filled, tmp_path):
    code = "from huggingface_hub import snapshot_download as get\n"
    code += f"get('org/tiny', revision='{OLD}', ignore_patterns='*.safetensors')\n"
    python(tmp_path, code + "get('org/rows', repo_type='dataset')")
    path = recipe(tmp_path, "half", f", revision: '{OLD}'")
    half = run(tmp_path, ["run", path], HF_HUB_OFFLINE="1")
    assert half["code"] == 4
    assert "error[E201] " in half["err"]
    assert "cannot load 'org/tiny': it is not complete in the" in half["err"]
    assert "its weights take about 0.000" in half["err"]
    assert f"fix: with network access: hf download org/tiny --revision {OLD}" in half["err"]


def parquet(rows: list[dict]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


ADAPTER = """
import json, sys
from llmft.modeling import peft_folder
from llmft.system import hub_commits
hub_commits.begin(json.loads(sys.argv[1]))
found = [peft_folder.read(asked) for asked in sys.argv[2:]]
commit = hub_commits.known(("model", "org/adapter", None))
print(json.dumps({"r": [one.settings["r"] for one in found], "commit": commit}))
"""


def test_an_adapter_of_the_hub_is_taken_at_one_commit(hub, tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(4)
    for commit, rank in ((OLD, 1), (NEW, 2)):
        files = {"adapter_config.json": json.dumps({"peft_type": "LORA", "r": rank}).encode()}
        files |= {"adapter_model.safetensors": weights, "evil.bin": b"pickle", "README.md": b"x"}
        hub.add("model", "org/adapter", files, commit)
    told = json.loads(python(tmp_path, ADAPTER, "[]", "org/adapter", f"org/adapter@{OLD}"))
    assert told == {"r": [2, 1], "commit": NEW}
    assert not [asked for asked in hub.asked if "evil" in asked or "README" in asked]
    # The commit in a run's lock holds, whatever comes later, and without the hub.
    hub.add("model", "org/adapter", {}, "4" * 40)
    hub.mode = "500"
    lock = [{"kind": "model", "name": "org/adapter", "revision": None, "commit": NEW}]
    assert json.loads(python(tmp_path, ADAPTER, json.dumps(lock), "org/adapter"))["r"] == [2]


@pytest.mark.extended
def test_rows_are_streamed_from_the_hub_kept_nowhere_and_pinned_to_its_commit(filled, tmp_path):
    name = recipe(tmp_path, "streamed", f", revision: '{OLD}'")
    text = Path(name).read_text()
    rows = "path: org/rows, streaming: true, buffer_size: 3"
    Path(name).write_text(text.replace("path: org/rows", rows))
    done = run(tmp_path, ["run", name])
    assert done["code"] == 0, done["err"]
    assert "covers the first 3, all that were read" in done["out"]
    assert {"kind": "dataset", "name": "org/rows", "revision": None, "commit": DATA} in lock(
        tmp_path, "streamed"
    )
    kept = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert not any(b"completion" in path.read_bytes() for path in kept)
    asked = [one for one in filled.asked if "train.jsonl" in one]
    assert asked
    assert all(DATA in one for one in asked)
    code = (
        "from llmft.api.errors import LlmftError\nfrom llmft.data import hub_tables\n"
        "for name, split in (('org/rows', 'absent'), ('org/none', 'train')):\n"
        "    try:\n"
        "        list(hub_tables.hub_records(name, None, split, None, streaming=True))\n"
        "    except LlmftError as error:\n        print(error.faults[0].code)\n"
    )
    assert python(tmp_path, code).split() == ["E109", "E201"]
