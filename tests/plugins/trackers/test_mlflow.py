"""The mlflow tracker: whom it tells, what a run becomes there, and that no run waits for it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from llmft_trackers.mlflow import MLflow, _environment

from llmft.api import EnvironmentFault
from llmft.testing import TrackerContract
from tests.plugins.trackers.loopback import Loopback, Sent, serving
from tests.plugins.trackers.told_run import RECIPE, moved_in
from tests.plugins.trackers.told_run import told as told_run

TOKEN = "canary-of-mlflow-0123456789"
real = pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")


@pytest.fixture(autouse=True)
def at_home(monkeypatch, tmp_path):
    moved_in(
        monkeypatch,
        tmp_path,
        "MLFLOW",
        "TRACKING_URI",
        "TRACKING_TOKEN",
        "EXPERIMENT_NAME",
        "RUN_ID",
    )


class TestMLflowContract(TrackerContract):
    method_class = MLflow
    configs = [{"experiment_name": "trivia", "run_name": "the third"}]


def told(monkeypatch, folder: Path, recipe=RECIPE, first: int = 1) -> tuple[str, float]:
    def make() -> MLflow:
        return MLflow(MLflow.Config(experiment_name="trivia"))

    return told_run(monkeypatch, make, folder, recipe, first)


@pytest.mark.parametrize(("named", "host"), [
    ("", ""), ("https://me:secret@mlflow.here:5000/team", "mlflow.here"),
    ("http://127.0.0.1:5000", "127.0.0.1"), ("runs/all", ""), ("file:///data/mlruns", ""),
])  # fmt: skip
def test_it_declares_the_host_that_the_environment_names(monkeypatch, named, host):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", named)
    assert MLflow(MLflow.Config()).contacts == host


@pytest.mark.parametrize("odd", [
    "databricks", "databricks://profile", "postgresql://me:secret@db/x", "s3://bucket/runs",
    "https://a.example\\@b.example", "http://a b", "uc:https://a.example", "plugin://x",
])  # fmt: skip
def test_an_address_whose_host_cannot_be_shown_is_refused(monkeypatch, odd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", odd)
    with pytest.raises(EnvironmentFault) as caught:
        MLflow(MLflow.Config())
    assert caught.value.faults[0].code == "E211"
    assert "secret" not in str(caught.value)


def test_the_process_gets_mlflows_login_and_no_other_secret_and_no_address(monkeypatch):
    given = {
        "MLFLOW_TRACKING_TOKEN": TOKEN, "MLFLOW_TRACKING_URI": "http://a.example",
        "MLFLOW_RUN_ID": "x", "MLFLOW_REGISTRY_URI": "http://a.example", "HF_TOKEN": "hf_canary",
        "MY_PASSWORD": "canary", "PLAIN": "kept", "MLFLOW_TRACKING_INSECURE_TLS": "true",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = {name: value for name, value in _environment().items() if name in given}
    assert found == {
        "MLFLOW_TRACKING_TOKEN": TOKEN, "PLAIN": "kept", "MLFLOW_TRACKING_INSECURE_TLS": "true",
    }  # fmt: skip


def test_a_missing_package_is_found_when_the_recipe_is_read(monkeypatch):
    monkeypatch.setattr("llmft_trackers.reporter.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="needs the package mlflow") as caught:
        MLflow.Config()
    assert caught.value.faults[0].fix == "pip install 'llmft[mlflow]'"


def test_a_library_that_breaks_is_told_once_and_harms_nobody(monkeypatch, tmp_path):
    broken = tmp_path / "broken" / "mlflow"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise SystemError('broken')\n")
    monkeypatch.syspath_prepend(str(broken.parent))
    said, ran = told(monkeypatch, tmp_path / "run")
    assert said == "note: mlflow did not receive everything; metrics.jsonl has every number\n"
    assert ran < 0.5


def stored(place: str, experiment: str = "trivia"):
    """Return the runs of a store with their curves of the loss, as MLflow reads them."""
    import mlflow

    monkey = pytest.MonkeyPatch()
    monkey.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(place)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id])
    monkey.undo()
    return [
        (run, [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "sft/loss")])
        for run in runs
    ]


@real
def test_a_resumed_run_goes_on_in_the_same_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns" / "0").mkdir(parents=True)  # what MLflow would take as its default
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("x")
    said, ran = told(monkeypatch, Path("runs/one"))
    assert said == (
        "note: mlflow is told; to see it: MLFLOW_ALLOW_FILE_STORE=true mlflow ui"
        " --backend-store-uri 'runs/one/mlflow'\n"
    )
    assert ran < 0.5
    told(monkeypatch, Path("runs/one"), {**RECIPE, "seed": 18}, first=4)
    ((run, losses),) = stored(str(tmp_path / "runs/one/mlflow"))
    assert losses == [(step, 0.0625 * step) for step in range(1, 7)]
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "17"
    assert run.data.tags["seed"] == "18"
    assert run.data.params["stages.sft.name"] == "sft"
    assert run.data.params["sft/rows"] == "900"
    assert run.data.metrics["sft/before/exact_match"] == 0.125
    assert run.data.metrics["sft/result/train_loss"] == 0.5
    assert run.data.tags["mlflow.note.content"] == "a remark"
    assert run.info.run_name == "trivia one"
    assert sorted(p.name for p in (tmp_path / "mlruns" / "0").iterdir()) == ["meta.yaml"]


class Refusing(Loopback):
    def answer(self, sent: Sent):
        return 401, {"error_code": "UNAUTHENTICATED", "message": f"no to {sent.login}"}


class Elsewhere(Loopback):
    def answer(self, sent: Sent):
        return 200, {}


@real
def test_a_server_that_refuses_ends_in_files_and_says_no_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    with serving(Refusing) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        said, ran = told(monkeypatch, tmp_path / "run")
        logins = {sent.login for sent in server.seen if sent.path != "/"}
    assert said.startswith("note: mlflow is offline (")
    assert TOKEN not in said
    assert ran < 0.5
    assert logins == {f"Bearer {TOKEN}"}
    assert next(steps for _, steps in stored(str(tmp_path / "run/mlflow")))[-1] == (3, 0.1875)
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert not [p for p in written if TOKEN.encode() in p.read_bytes()]


@real
@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_is_not_followed(monkeypatch, tmp_path, status):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    with serving(Elsewhere, "localhost") as elsewhere:

        class Redirecting(Loopback):
            def answer(self, sent: Sent):
                return status, f"{elsewhere.url}{sent.path}"

        with serving(Redirecting) as server:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
            said, _ = told(monkeypatch, tmp_path / "run")
        assert server.seen
        assert elsewhere.seen == []
    assert "mlflow is offline (" in said
