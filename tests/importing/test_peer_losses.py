"""What an imported configuration computes is what the other tool's own trainer computed with it."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from llmft.cli.main import main
from llmft.engine.session import run_recipe
from llmft.engine.stage import StageRunner
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry

HARNESS = Path(__file__).parents[2] / "benchmarks" / "peer_losses"
sys.path.insert(0, str(HARNESS))
try:
    from peer_cases import CASES, PEERS, laid
    from peer_start import give_start
finally:
    sys.path.remove(str(HARNESS))

CHANGES = ["trackers=[{method: jsonl}]", "stages[0].train.save_strategy=no"]


class Enough(BaseException):
    """As many steps as were recorded are done."""


def record_of(peer: str) -> dict[str, Any]:
    return json.loads((HARNESS / "records" / f"{peer}.json").read_text("utf-8"))


@pytest.fixture
def losses_of(monkeypatch):
    """Run a recipe's first steps from the weights that the peer started from: (losses, items)."""

    def run(path: Path, steps: int):
        seen: dict[str, Any] = {"losses": []}
        fit, on_step = StageRunner._fit, StageRunner._on_step

        def begun(runner, items, *rest):
            give_start(runner.models.model)
            seen["items"] = list(items)
            return fit(runner, items, *rest)

        def stepped(runner, step, of, metrics, log):
            on_step(runner, step, of, metrics, log)
            seen["losses"].append(metrics["loss"])
            if step == steps:
                raise Enough

        monkeypatch.setattr(StageRunner, "_fit", begun)
        monkeypatch.setattr(StageRunner, "_on_step", stepped)
        with pytest.raises(Enough):
            run_recipe(load_recipe(path, Registry.discover(), CHANGES))
        return seen["losses"], seen["items"]

    return run


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.peer}-{case.name}")
def test_the_first_losses_are_those_of_the_peers_own_trainer(
    case, losses_of, tmp_path, monkeypatch, capsys
):
    expected = record_of(case.peer)["cases"][case.name]
    config = laid(case, tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["import", config.name, "--output", "recipe.yaml", "--json", "--peer", case.peer]
    words += ["--trainer", case.trainer] if case.trainer else []
    words += ["--rows", case.rows] if case.rows else []
    assert main([*words, *(["--anyway"] if case.decided else [])]) == 0
    told = json.loads(capsys.readouterr().out)
    asked = [found["key"] for found in told["findings"] if found["grade"] in ("decide", "cannot")]
    assert sorted(set(asked)) == sorted(case.decided)

    losses, items = losses_of(tmp_path / "recipe.yaml", len(expected["losses"]))
    assert len(losses) >= 5
    if case.factor is None:
        assert losses != pytest.approx(expected["losses"], rel=1e-3), case.differs
        return
    assert [case.factor * loss for loss in losses] == pytest.approx(expected["losses"], rel=1e-4)
    if expected["learnt"] is not None and hasattr(items[0], "labels"):
        learnt = [label for item in items for label in item.labels if label != -100]
        assert len(learnt) == expected["learnt"]


def test_the_page_has_the_records(monkeypatch):
    monkeypatch.syspath_prepend(str(HARNESS))
    spec = spec_from_file_location("peer_losses_run", HARNESS / "run.py")
    run = module_from_spec(spec)
    spec.loader.exec_module(run)
    assert f"{run.BEGIN}\n{run.table()}{run.END}" in run.PAGE.read_text("utf-8")


@pytest.mark.parametrize("peer", PEERS)
def test_a_record_has_six_configurations_of_which_each_learns(peer):
    record = record_of(peer)
    assert len(record["cases"]) >= 6
    assert set(record["cases"]) == {case.name for case in CASES if case.peer == peer}
    assert {"torch", "transformers", PEERS[peer].package} <= set(record["versions"])
    for name, found in record["cases"].items():
        assert abs(found["losses"][-1] / found["losses"][0] - 1) > 1e-3, name
