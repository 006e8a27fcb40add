"""Lists of runs, and runs held against each other, from what is on disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmft.api.errors import RecipeError
from llmft.cli.main import main
from llmft.reporting.run_list import runs_under
from tests.exporting.conftest import lora_run, rows_file, train  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures by their names


@pytest.fixture
def place(lora_run, tmp_path) -> Path:
    """A folder of four runs: two finished, one stopped, one damaged."""
    runs = tmp_path / "runs"
    names = {"a": "20260101-000000-aa", "b": "20260102-000000-bb", "c": "20260103-000000-cc",
             "d": "20260104-000000-dd"}  # fmt: skip
    for name, folder in names.items():
        shutil.copytree(lora_run, runs / name / folder)
        edit(runs / name / folder / "run.json", name=name)
    edit(score(runs, "b"), after={"loss": 0.5, "exact_match": 0.75})
    edit(score(runs, "a"), after={"loss": 1.5, "exact_match": 0.25})
    score(runs, "c").unlink()
    score(runs, "d").write_text("{")
    return runs


def score(runs: Path, name: str) -> Path:
    (found,) = (runs / name).glob("*/stages/sft/result.json")
    return found


def edit(path: Path, **more) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def names(found) -> str:
    return "".join(run.name for run in found)


def test_runs_are_listed_newest_first_with_their_state(place):
    found = runs_under(place)
    assert names(found) == "dcba"
    assert [run.state for run in found] == ["damaged", "stopped", "finished", "finished"]
    assert "damaged" in found[0].fault
    assert found[-1].started == "2026-01-01 00:00"
    assert found[-1].facts is not None
    assert found[-1].facts.seconds > 0


def test_they_are_sorted_and_chosen(place):
    assert names(runs_under(place, sort="name")) == "abcd"
    assert names(runs_under(place, sort="loss"))[:2] == "ba"  # the lowest is the best
    assert names(runs_under(place, sort="exact_match"))[:2] == "ba"
    edit(score(place, "a"), after={"loss": 0.1, "exact_match": 0.25})
    assert names(runs_under(place, sort="loss"))[:2] == "ab"
    assert names(runs_under(place, name="[ab]")) == "ba"
    assert names(runs_under(place, state="stopped")) == "c"
    assert names(runs_under(place / "a")) == "a"
    (run,) = (place / "a").iterdir()
    assert len(runs_under(run)) == 1
    assert names(runs_under(place.parent)) == "dcba"  # `runs`, where recipes write theirs
    (place / "a/empty").mkdir()
    assert runs_under(place / "a/empty", sort="loss") == []
    with pytest.raises(RecipeError, match="one of: exact_match, loss"):
        runs_under(place, sort="bleu")
    with pytest.raises(RecipeError, match="there is no folder"):
        runs_under(place / "nothing")


def test_a_run_whose_process_lives_is_running(place):
    import os
    import socket

    from llmft.runs.locking import boot_id

    (run,) = (place / "c").iterdir()
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "boot": boot_id()}
    (run / "lock").write_text(json.dumps(holder))
    assert names(runs_under(place, state="running")) == "c"
    (run / "lock").write_text(json.dumps(holder | {"boot": "another"}))
    assert names(runs_under(place, state="stopped")) == "c"


def test_the_commands_print_and_load_no_torch(place):
    code = (
        "import sys; from llmft.cli.main import main; a, b = sys.argv[1:]; "
        "codes = [main(['runs', a]), main(['compare', b, b]), main(['report', b])]; "
        "sys.stdout.flush(); print(*codes, 'torch' in sys.modules, file=sys.stderr)"
    )
    (run,) = (place / "b").iterdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(place), str(run)], capture_output=True, text=True
    )
    assert done.stderr.split() == ["0", "0", "0", "False"]
    assert "loss" in done.stdout
    assert "finished" in done.stdout


def test_two_runs_are_compared_by_settings_scores_and_rows(place, tmp_path, capsys):
    (a,), (b,) = (list((place / name).iterdir()) for name in "ab")
    recipe = (b / "resolved.yaml").read_text()
    (b / "resolved.yaml").write_text(recipe.replace("learning_rate: 0.02", "learning_rate: 0.03"))
    for run, right in ((a, 0.0), (b, 1.0)):
        rows = [{"when": "after", "prompt": f"q{n}", "right": ["x"], "exact_match": right}
                for n in range(8)]  # fmt: skip
        (run / "stages/sft/samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    page = tmp_path / "compared.html"
    assert main(["compare", str(a), str(b), "--output", str(page), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    key = "stages.sft.train.learning_rate"
    assert told["settings"] == [{"key": key, "values": ["0.02", "0.03"]}]
    assert told["scores"]["loss"] == [1.5, 0.5]
    (test,) = told["paired"][0]["tests"]
    assert (test["rows"], test["first"], test["second"], test["seen"]) == (8, 0.0, 1.0, True)
    assert test["p"] == pytest.approx(2 / 2**8)
    text = page.read_text()
    assert text.count('class="line l2"') == text.count('class="line l1"') >= 3
    assert main(["compare", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert key in out
    assert "a difference: +1.0000" in out
    assert main(["compare", str(a), str(b), "--output", str(page)]) == 2
    assert main(["compare", str(a)]) == 2


def test_runs_that_were_scored_on_other_rows_are_told_apart(place, tmp_path, capsys):
    (a,), (b,) = (list((place / name).iterdir()) for name in "ab")
    page = tmp_path / "compared.html"
    assert main(["compare", str(a), str(b)]) == 0
    assert "on other rows" not in capsys.readouterr().out
    digests = json.loads((b / "lock.json").read_text())["rows_sha256"]
    edit(b / "lock.json", rows_sha256={"sft": {**digests["sft"], "evaluate": "0" * 64}})
    assert main(["compare", str(a), str(b), "--output", str(page)]) == 0
    assert "note: B: scored on other rows than the first" in capsys.readouterr().out
    assert "on other rows" in page.read_text()
    assert main(["compare", str(a), str(b), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scored_on_other_rows"] == [f"b/{b.name}"]


def test_files_of_rows_are_compared(tmp_path, capsys):
    for name, right in (("a", 1.0), ("b", 0.0)):
        rows = [{"prompt": f"q{n}", "right": ["x"], "f1": right, "answer": ""} for n in range(5)]
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (test,) = told["paired"][0]["tests"]
    assert (test["metric"], test["rows"], test["low"]) == ("f1", 5, -1.0)
    # Agresti and Min (2005), half a row added to each cell: -5/7 + 1.96 sqrt(6 - 25/7) / 7.
    assert test["high"] == pytest.approx(-0.2779, abs=1e-3)
    (tmp_path / "c").write_text("no json")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 3
