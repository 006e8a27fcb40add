"""The swanlab tracker: whom it tells with whose key, and files to send later where it cannot."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from llmft_trackers.swanlab import SwanLab, _environment
from llmft_trackers.swanlab.server import api_host, saved_key

from llmft.api import EnvironmentFault, RecipeError
from llmft.testing import TrackerContract
from tests.plugins.trackers.loopback import Loopback, Sent, serving
from tests.plugins.trackers.told_run import moved_in
from tests.plugins.trackers.told_run import told as told_run

KEY = "canaryofswanlab012345"
real = pytest.mark.skipif(find_spec("swanlab") is None, reason="swanlab is not installed")


@pytest.fixture(autouse=True)
def at_home(monkeypatch, tmp_path):
    moved_in(
        monkeypatch,
        tmp_path,
        "SWANLAB",
        "API_KEY",
        "API_HOST",
        "MODE",
        "ROOT",
        "SAVE_DIR",
        "PROJ_NAME",
        "WEBHOOK",
    )


class TestSwanLabContract(TrackerContract):
    method_class = SwanLab
    configs = [{"mode": "offline", "project": "trivia", "tags": ["a"], "group": "g"}]


def told(monkeypatch, folder: Path, first: int = 1, **settings) -> tuple[str, float]:
    def make() -> SwanLab:
        return SwanLab(SwanLab.Config(**settings))

    return told_run(monkeypatch, make, folder, first=first)


def log_in(home: Path, host: str, key: str = KEY) -> None:
    """Write down a login as `swanlab login` does."""
    (home / ".swanlab").mkdir(parents=True)
    netrc = home / ".swanlab" / ".netrc"
    netrc.write_text(f"machine {host}\n\tlogin {host}\n\tpassword {key}\n")
    netrc.chmod(0o600)


@pytest.mark.parametrize(("mode", "named", "host"), [
    ("auto", {}, "api.swanlab.cn"),
    ("auto", {"SWANLAB_API_HOST": "https://swan.here:8000/api"}, "swan.here"),
    ("auto", {"SWANLAB_API_HOST": "swan.here"}, "swan.here"),
    ("offline", {}, ""),
    ("auto", {"SWANLAB_MODE": "local"}, ""),
    ("auto", {"SWANLAB_MODE": "disabled"}, ""),
    ("auto", {"SWANLAB_MODE": "cloud"}, "api.swanlab.cn"),
])  # fmt: skip
def test_it_declares_the_host_that_it_would_tell(monkeypatch, mode, named, host):
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    assert SwanLab(SwanLab.Config(mode=mode)).contacts == host


def test_the_address_and_the_key_are_those_of_the_login_at_home(monkeypatch, tmp_path):
    log_in(tmp_path / "home", "https://swan.here/api")
    log_in(tmp_path / "work", "https://elsewhere.example", "another")
    (tmp_path / "work/swanlab.yaml").write_text("api_host: https://elsewhere.example\n")
    (tmp_path / "work/.env").write_text("SWANLAB_API_HOST=https://elsewhere.example\n")
    monkeypatch.chdir(tmp_path / "work")
    assert api_host() == "https://swan.here"
    assert saved_key("https://swan.here") == KEY
    assert saved_key("https://elsewhere.example") is None
    monkeypatch.setenv("SWANLAB_API_HOST", "https://other.example")
    assert api_host() == "https://other.example"


def test_an_address_that_programs_read_differently_is_refused(monkeypatch):
    for odd in ("https://a.example\\@b.example", "ftp://a.example", "https://a b"):
        monkeypatch.setenv("SWANLAB_API_HOST", odd)
        with pytest.raises(EnvironmentFault, match="no plain http address"):
            SwanLab(SwanLab.Config())


@pytest.mark.parametrize("with_key", [True, False])
def test_the_process_gets_swanlabs_key_and_none_of_its_other_settings(monkeypatch, with_key):
    given = {
        "SWANLAB_API_KEY": KEY, "SWANLAB_API_HOST": "http://a.example", "HF_TOKEN": "hf_canary",
        "SWANLAB_WEBHOOK": "http://a.example", "SWANLAB_RUN_ID": "x", "PLAIN": "kept",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = {name: value for name, value in _environment(with_key).items() if name in given}
    assert found == {"PLAIN": "kept"} | ({"SWANLAB_API_KEY": KEY} if with_key else {})


def test_a_missing_package_is_found_when_the_recipe_is_read(monkeypatch):
    monkeypatch.setattr("llmft_trackers.reporter.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="needs the package swanlab") as caught:
        SwanLab.Config()
    assert caught.value.faults[0].fix == "pip install 'llmft[swanlab]'"


@pytest.mark.parametrize(("key", "value"), [
    ("project", "my project"), ("project", "x" * 101), ("workspace", "a.b"),
    ("workspace", "x" * 26),
])  # fmt: skip
def test_a_name_that_swanlab_would_refuse_is_found_when_the_recipe_is_read(key, value):
    with pytest.raises(RecipeError, match=f"takes no {key} called"):
        SwanLab.Config(**{key: value})
    assert getattr(SwanLab.Config(**{key: "x" * 25}), key) == "x" * 25


class Swan(Loopback):
    """As much of SwanLab's server as a run asks for."""

    def answer(self, sent: Sent):
        path = sent.path.partition("?")[0]
        if path == "/api/login/api_key":
            user = {"username": "me"}
            return 200, {"sid": "s", "expiredAt": "2099-01-01T00:00:00.000Z", "userInfo": user}
        if path.endswith("/experiment"):
            new = len([s for s in self.seen if s.path == sent.path]) == 1
            found = {"cuid": "c", "slug": "c", "name": "n", "createdAt": "2026-01-01T00:00:00.000Z"}
            return (201 if new else 200), found
        if path == "/api/project/me/trivia":
            counts = {"experiments": 0}
            group = {"username": "me"}
            found = {"cuid": "p", "name": "trivia", "path": "/me/trivia", "group": group}
            return 200, {**found, "_count": counts}
        return 200, {}


@real
def test_a_resumed_run_goes_on_in_the_same_run_at_the_server_of_the_environment(
    monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWANLAB_API_KEY", KEY)
    with serving(Loopback, "localhost") as elsewhere, serving(Swan) as server:
        monkeypatch.setenv("SWANLAB_API_HOST", server.url)
        monkeypatch.setenv("SWANLAB_WEBHOOK", elsewhere.url)
        (tmp_path / "swanlab.yaml").write_text(f"api_host: {elsewhere.url}\n")
        (tmp_path / ".env").write_text(f"SWANLAB_API_HOST={elsewhere.url}\n")
        log_in(tmp_path, elsewhere.url, "another")
        said, ran = told(monkeypatch, Path("runs/one"), project="trivia")
        told(monkeypatch, Path("runs/one"), first=4, project="trivia")
        assert elsewhere.seen == []
    assert said == f"note: swanlab shows this run at {server.url}/@me/trivia/runs/c\n"
    assert ran < 0.5
    begun = [sent.body for sent in server.seen if sent.path.endswith("/experiment")]
    assert [body["cuid"] for body in begun] == ["one", "one"]
    points = [
        (m["key"], m["index"], m["data"])
        for sent in server.seen
        if sent.path == "/api/house/metrics"
        for m in sent.body["metrics"]
    ]
    losses = [(step, value) for key, step, value in points if key == "sft/loss"]
    assert losses == [(step, 0.0625 * step) for step in range(1, 7)]
    assert ("sft/before/exact_match", 0, 0.125) in points
    assert ("sft/result/train_loss", 3, 0.5) in points
    told_of = str([sent.body for sent in server.seen])
    assert not [word for word in (KEY, "hostname", "requirements", "cwd") if word in told_of]
    assert "'sft/rows'" in told_of
    written = [p for p in (tmp_path / "runs").rglob("*") if p.is_file()]
    assert written
    assert not [p for p in written if KEY.encode() in p.read_bytes()]


class Refusing(Loopback):
    def answer(self, sent: Sent):
        return 401, {"code": "401", "message": "unauthorised"}


@real
def test_without_a_key_or_with_one_that_is_refused_it_ends_in_files(monkeypatch, tmp_path):
    with serving(Refusing) as server:
        monkeypatch.setenv("SWANLAB_API_HOST", server.url)
        said, _ = told(monkeypatch, tmp_path / "first")
        assert server.seen == []
        monkeypatch.setenv("SWANLAB_API_KEY", KEY)
        refused, ran = told(monkeypatch, tmp_path / "second")
    assert "swanlab is offline (there is no key: swanlab login); afterwards: swanlab sync" in said
    assert "swanlab is offline (127.0.0.1 refuses the key: swanlab login --relogin)" in refused
    assert ran < 0.5
    assert list((tmp_path / "second/swanlab").glob("run-*/*.swanlab"))


@real
@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_is_not_followed(monkeypatch, tmp_path, status):
    monkeypatch.setenv("SWANLAB_API_KEY", KEY)
    with serving(Swan, "localhost") as elsewhere:

        class Redirecting(Loopback):
            def answer(self, sent: Sent):
                return status, f"{elsewhere.url}{sent.path}"

        with serving(Redirecting) as server:
            monkeypatch.setenv("SWANLAB_API_HOST", server.url)
            said, _ = told(monkeypatch, tmp_path / "run")
        assert server.seen
        assert elsewhere.seen == []
    assert "swanlab is offline (" in said
