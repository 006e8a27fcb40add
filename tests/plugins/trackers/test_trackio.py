"""The trackio tracker: files that trackio reads, one run whatever was resumed, and nothing sent."""

from __future__ import annotations

import json
import sqlite3
from importlib.util import find_spec
from pathlib import Path

import pytest
from llmft_trackers.trackio import Trackio, _environment

from llmft.api import EnvironmentFault
from llmft.testing import TrackerContract
from tests.plugins.trackers.loopback import Loopback, serving
from tests.plugins.trackers.told_run import moved_in
from tests.plugins.trackers.told_run import told as told_run

real = pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")


@pytest.fixture(autouse=True)
def at_home(monkeypatch, tmp_path):
    moved_in(monkeypatch, tmp_path, "TRACKIO", "DIR", "SPACE_ID", "SERVER_URL", "WRITE_TOKEN")


class TestTrackioContract(TrackerContract):
    method_class = Trackio
    configs = [{"project": "trivia", "name": "the third", "group": "g"}]


def told(monkeypatch, folder: Path, first: int = 1) -> tuple[str, float]:
    def make() -> Trackio:
        return Trackio(Trackio.Config(project="trivia"))

    return told_run(monkeypatch, make, folder, first=first)


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
