"""The trackio tracker: files that trackio reads, one run whatever was resumed, and nothing sent."""

from __future__ import annotations

import io
import json
import sqlite3
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from llmft_trackers.trackio import Trackio, _environment

from llmft.api import EnvironmentFault, Progress, RunInfo, StageInfo
from llmft.testing import TrackerContract
from tests.plugins.trackers.loopback import Loopback, serving

STAGE = StageInfo("sft", "lora", "sft", 1_000, 100_000, 900, 12_000, 3_000, 20)
RECIPE = {"recipe": 1, "name": "trivia", "seed": 17, "stages": [{"name": "sft"}]}
real = pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")


@pytest.fixture(autouse=True)
def at_home(monkeypatch, tmp_path):
    """An empty home and environment; the package counts as installed, as a recipe is read."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("DIR", "SPACE_ID", "SERVER_URL", "WRITE_TOKEN"):
        monkeypatch.delenv(f"TRACKIO_{name}", raising=False)
    monkeypatch.setattr("llmft_trackers.reporter.find_spec", lambda name: True)


class TestTrackioContract(TrackerContract):
    method_class = Trackio
    configs = [{"project": "trivia", "name": "the third", "group": "g"}]


def told(monkeypatch, folder: Path, first: int = 1) -> tuple[str, float]:
    """Tell a whole run; return what was said, and the longest wait while it ran."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    tracker = Trackio(Trackio.Config(project="trivia"))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    tracker.run_started(RunInfo("trivia", folder, RECIPE, ("sft",)))
    tracker.stage_started(STAGE)
    tracker.scored("sft", "before", {"exact_match": 0.125})
    for step in range(first, first + 3):
        metrics = {"loss": 0.0625 * step}
        tracker.progress(Progress("sft", "train", step, 20, metrics, logged=True))
    tracker.stage_finished("sft", {"metrics": {"train_loss": 0.5}})
    ran = time.monotonic() - began
    process = tracker._process._process
    tracker._process._lines.put('{"exit_code": 0}')
    tracker._process._lines.put(None)
    process.wait(120)  # a busy machine imports for longer than a run waits at its end
    tracker.run_finished({"status": "done"})
    return out.getvalue(), ran


@pytest.mark.parametrize("name", ["TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"])
def test_what_would_send_elsewhere_is_refused_with_the_way_to_send_it_afterwards(monkeypatch, name):
    monkeypatch.setenv(name, "me/space")
    with pytest.raises(EnvironmentFault, match=f"{name} is set") as caught:
        Trackio(Trackio.Config(project="trivia"))
    assert caught.value.faults[0].code == "E211"
    assert caught.value.faults[0].fix.endswith("trackio sync --project trivia")


def test_the_process_gets_no_secret_and_nothing_that_leads_to_the_hub(monkeypatch):
    given = {
        "HF_TOKEN": "hf_canary", "HF_HOME": "/home/me/hub", "HF_ENDPOINT": "http://a.example",
        "TRACKIO_WEBHOOK_URL": "http://a.example", "TRACKIO_WRITE_TOKEN": "canary",
        "TRACKIO_STORAGE_MODE": "jsonl", "SPACE_HOST": "a.example", "PLAIN": "kept",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = {name: value for name, value in _environment().items() if name in given}
    assert found == {"TRACKIO_STORAGE_MODE": "jsonl", "PLAIN": "kept"}


def test_a_missing_package_is_found_when_the_recipe_is_read(monkeypatch):
    monkeypatch.setattr("llmft_trackers.reporter.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="needs the package trackio") as caught:
        Trackio.Config()
    assert caught.value.faults[0].fix == "pip install 'llmft[trackio]'"


def rows(folder: Path) -> list[tuple[str, int, dict]]:
    """Return the run, the step and the numbers of each row, as trackio stores them."""
    with sqlite3.connect(folder / "trivia.db") as found:
        all_of = "select run_id, step, metrics from metrics order by id"
        return [(run, step, json.loads(told)) for run, step, told in found.execute(all_of)]


@real
@pytest.mark.parametrize("named", ["", "mine"])
def test_a_resumed_run_goes_on_in_the_same_run_and_asks_nobody(monkeypatch, tmp_path, named):
    monkeypatch.chdir(tmp_path)
    with serving(Loopback) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_canaryA1B2C3D4E5F6")
        if named:
            monkeypatch.setenv("TRACKIO_DIR", named)
        said, ran = told(monkeypatch, Path("runs/one"))
        told(monkeypatch, Path("runs/one"), first=4)
        assert hub.seen == []
    folder = named or "runs/one/trackio"
    assert said == (f"note: to see this run: TRACKIO_DIR={folder} trackio show --project trivia\n")
    assert ran < 0.5
    found = rows(tmp_path / folder)
    assert len({run for run, _, _ in found}) == 1
    losses = [(step, told["sft/loss"]) for _, step, told in found if "sft/loss" in told]
    assert losses == [(step, 0.0625 * step) for step in range(1, 7)]
    assert (0, {"sft/before/exact_match": 0.125}) in [row[1:] for row in found]
    assert (3, {"sft/result/train_loss": 0.5}) in [row[1:] for row in found]
    assert not list((tmp_path / "home").iterdir())
