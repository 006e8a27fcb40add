"""A run's report: one file that shows what the run's files hold, and does nothing else."""

from __future__ import annotations

import html
import json
import re
import shutil

import pytest

from llmft.api.errors import CheckpointError
from llmft.cli.main import main
from llmft.reporting import curves
from llmft.reporting.report import page, write_report
from llmft.reporting.run_facts import run_facts
from llmft.reporting.samples import marked, pairs
from tests.exporting.conftest import lora_run, rows_file, train  # noqa: F401 - fixtures
from tests.ranking.browser import Browser, missing

# ruff: noqa: F811 - fixtures by their names
HOSTILE = "</pre><script>document.title='owned'</script>{{ 7 * 7 }}\x1b[2J\u202e"


@pytest.fixture
def copied(lora_run, tmp_path):
    """A copy of a finished run, to be changed."""
    return shutil.copytree(lora_run, tmp_path / lora_run.name)


def test_a_run_leaves_its_report_and_its_timeline(lora_run):
    told = json.loads((lora_run / "timeline.json").read_text())
    assert told["status"] == "finished"
    stage = told["stages"]["sft"]
    phases = [phase["phase"] for phase in stage["phases"]]
    assert phases.index("load the model") < phases.index("train") < len(phases) - 1
    assert all(phase["seconds"] >= 0 for phase in stage["phases"])
    assert sum(phase["seconds"] for phase in stage["phases"]) <= told["seconds"]
    assert stage["phases"][-1]["peak_bytes"] > 50e6  # torch alone takes more
    assert (stage["rows"], stage["steps"]) == (14, 4)
    text = (lora_run / "report.html").read_text()
    assert "<strong>finished</strong>" in text  # though the run still held its lock
    result = json.loads((lora_run / "stages/sft/result.json").read_text())
    for name, value in result["after"].items():
        was = rf"<td>{result['before'][name]:.4f}[^<]*</td>"
        assert re.search(rf"{name}</th><td>\d+</td>{was}<td>{value:.4f}[^<]*<", text)
    assert text.count("<polyline") == len(run_facts(lora_run).stages[0].curves) - 1  # no epoch
    assert "learning_rate: 0.02" in text  # the recipe
    assert json.loads((lora_run / "lock.json").read_text())["packages"]["torch"] in text


def test_a_report_that_cannot_be_written_ends_no_run(run, rows_file, monkeypatch):
    from llmft.engine import recorder

    def fail(folder):
        raise OSError("no room")

    monkeypatch.setattr(recorder, "write_report", fail)
    stage = {"name": "sft", "adapter": {"method": "lora", "r": 2}, "alignment": {"method": "sft"},
             "data": {"method": "jsonl", "path": str(rows_file)},
             "train": {"max_steps": 1}}  # fmt: skip
    summary = run(stage)
    assert summary.stages["sft"].steps == 1
    assert not (summary.folder / "report.html").exists()
    assert "tracker 'report' failed" in (summary.folder / "log.txt").read_text()


def test_a_resumed_run_keeps_what_was_recorded_before(copied):
    from llmft.api import Progress, RunInfo
    from llmft.engine.recorder import Recorder

    before = json.loads((copied / "timeline.json").read_text())
    recorder = Recorder()
    recorder.run_started(RunInfo("tiny", copied, {}, ("sft",)))
    recorder.progress(Progress("sft", "train", 1, 2))
    recorder.progress(Progress("sft", "train", 2, 2))
    recorder.note("went on")
    recorder.run_finished({"status": "interrupted"})
    now = json.loads((copied / "timeline.json").read_text())
    assert now["status"] == "interrupted"
    assert now["seconds"] >= before["seconds"] > 0
    old, new = (t["stages"]["sft"]["phases"] for t in (before, now))
    assert new[: len(old)] == old
    assert [phase["phase"] for phase in new[len(old) :]] == ["train"]
    assert now["notes"] == [*before["notes"], "went on"]
    assert "went on" in (copied / "report.html").read_text()


def test_what_strangers_wrote_is_text(copied):
    line = {"prompt": HOSTILE, "answer": HOSTILE, "right": [HOSTILE]}
    (copied / "stages/sft/samples.jsonl").write_text(
        "".join(json.dumps(line | {"when": when}) + "\n" for when in ("before", "after"))
    )
    run = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps(run | {"name": HOSTILE}))
    text = write_report(copied).read_text()
    assert "<script" not in text
    assert "{{ 7 * 7 }}" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert not re.search(r"(src|href)=.?(https?:|//)", text)
    assert "default-src 'none'" in html.unescape(text)


def test_a_curve_is_scaled_into_its_box():
    drawn = curves.curve("loss", [("loss", [(0, 4.0), (5, 2.0), (10, 0.0)])])
    (_, points), = drawn.lines  # fmt: skip
    # x: 58 to 410, y: 10 (the top, 4) to 174 (the bottom, 0).
    assert points == "58.0,10.0 234.0,92.0 410.0,174.0"
    assert [tick.text for tick in drawn.y_ticks] == ["0", "1", "2", "3", "4"]
    assert [tick.text for tick in drawn.x_ticks] == ["0", "2", "4", "6", "8", "10"]
    flat = curves.curve("x", [("x", [(1, 2.0)])])
    assert len(flat.y_ticks) > 1


def test_the_numbers_of_an_axis_are_written_alike():
    assert curves.numbers([0.0, 5e-5, 1e-4, 1.5e-4]) == ["0", "5.0e-5", "1.0e-4", "1.5e-4"]
    assert curves.numbers([0.0, 0.5, 1.0]) == ["0", "0.5", "1"]


def test_a_long_curve_keeps_its_extremes():
    points = [(float(x), 9.0 if x == 7777 else x % 3) for x in range(10_000)]
    kept = curves.thinned(points)
    assert len(kept) <= 400
    assert (7777.0, 9.0) in kept
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_what_differs_between_two_answers_is_marked():
    left, right = marked("It is Paris.", "It is London, yes.")
    assert left == [("It is ", False), ("Paris", True), (".", False)]
    assert "".join(text for text, _ in right) == "It is London, yes."
    assert [text for text, differs in right if differs] == ["London, yes"]
    samples = [{"when": w, "prompt": "p", "answer": a, "f1": s}
               for w, a, s in (("before", "x", 0.0), ("after", "y", 1.0))]  # fmt: skip
    (pair,) = pairs(samples)
    assert pair.scores == "f1 0 \u2192 1"


def test_a_stage_that_is_not_finished_says_so(copied):
    (copied / "stages/sft/result.json").unlink()
    facts = run_facts(copied)
    assert facts.state == "stopped"
    assert "not finished" in page(facts)


def test_a_damaged_file_is_named(copied):
    (copied / "timeline.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"timeline\.json' is damaged"):
        write_report(copied)


def test_the_command_writes_the_page_and_the_numbers(copied, tmp_path, capsys):
    (copied / "report.html").unlink()
    data = tmp_path / "curves.csv"
    assert main(["report", str(copied), "--data", str(data)]) == 0
    assert (copied / "report.html").is_file()
    lines = data.read_text().splitlines()
    assert lines[0] == "stage,metric,step,value"
    found = [line.split(",") for line in lines[1:]]
    points = run_facts(copied).stages[0].curves["loss"]
    assert [(float(x), float(y)) for s, m, x, y in found if m == "loss"] == points
    assert main(["report", str(copied), "--data", str(data)]) == 2
    assert main(["report", str(tmp_path)]) == 6


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if missing():
        pytest.skip(missing())
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


def test_the_page_stands_in_a_browser(browser, copied):
    browser.open(f"file://{write_report(copied)}")
    assert browser.run("return document.title") == "tiny: report of a run"
    line = "document.querySelector('polyline')"
    assert browser.run(f"return getComputedStyle({line}).fill") == "none"  # its own style acts
    assert browser.run(f"return {line}.getBoundingClientRect().width") > 100
    wide = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert browser.run(f"return {wide}")
    named = "[...document.querySelectorAll('svg')].every(s => s.getAttribute('aria-label'))"
    assert browser.run(f"return {named}")
    assert browser.run("return performance.getEntriesByType('resource').length") == 0


def test_numbers_have_units_and_words(copied):
    path = copied / "stages/sft/result.json"
    result = json.loads(path.read_text("utf-8"))
    result["metrics"] |= {"checkpoint_ms": 94.9, "train_seconds": 85.0}
    path.write_text(json.dumps(result), "utf-8")
    text = write_report(copied).read_text("utf-8")
    assert "What was trained, and on what" in text
    for name, value in (
        ("time of a checkpoint, mean", "94.9 ms"), ("time of training", "1:25 min"),
    ):  # fmt: skip
        assert f'<th scope="row">{name}</th><td>{value}</td>' in text


def test_a_task_has_scores_with_standard_errors_and_names_what_it_reads(copied):
    path = copied / "stages/sft/result.json"
    result = json.loads(path.read_text("utf-8"))
    result |= {"before": {}, "after": {"piqa_acc": 0.5}, "metrics": {"piqa_acc_stderr": 0.25}}
    result["scores"] = {"after": {"piqa_acc": {"value": 0.5, "low": 0.1, "high": 0.9, "n": 4}}}
    path.write_text(json.dumps(result), "utf-8")
    times = copied / "timeline.json"
    told = json.loads(times.read_text("utf-8"))
    del told["stages"]["sft"]["trainable_parameters"]
    times.write_text(json.dumps(told), "utf-8")
    lock = json.loads((copied / "lock.json").read_text("utf-8"))
    lock["rows_sha256"]["sft"] = {"lm-eval": "0.4.13", "tasks/a.yaml": "0123456789abcdef" * 4}
    (copied / "lock.json").write_text(json.dumps(lock), "utf-8")
    text = write_report(copied).read_text("utf-8")
    cells = re.findall(r"<td>([^<]*)</td>", text[text.index('<th scope="row">piqa_acc<') :])
    assert cells[:3] == ["4", "0.5000 [0.10, 0.90]", "0.2500"]
    assert text.count("piqa") == 1
    assert ">before</th>" not in text
    assert "<td>0.4.13</td>" in text[text.index(">lm-eval, which sft reads<") :]
    assert ">SHA-256 of tasks/a.yaml, which sft reads<" in text


def test_scores_come_with_their_rows_and_intervals(copied):
    path = copied / "stages/sft/result.json"
    result = json.loads(path.read_text("utf-8"))
    of = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 1234}
    result |= {"before": {"f1": 0.125}, "after": {"f1": 0.5}}
    result["scores"] = {
        "before": {"f1": of | {"low": None, "high": None}}, "after": {"f1": of},
        "difference": {"f1": of | {"low": 0.3}},
    }  # fmt: skip
    path.write_text(json.dumps(result), "utf-8")
    text = write_report(copied).read_text("utf-8")
    cells = re.findall(r"<td>([^<]*)</td>", text[text.index('<th scope="row">f1') :])
    assert cells[:4] == ["1,234", "0.1250", "0.5000 [0.25, 0.75]", "+0.3750 [0.30, 0.75]"]
    result["scores"]["after"]["f1"]["low"] = "<b>"
    path.write_text(json.dumps(result), "utf-8")
    with pytest.raises(CheckpointError, match=r"the score .f1, low. is no number"):
        write_report(copied)
