"""The wandb tracker: never in the way, whatever the network does, and never a secret in a file."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from llmft_trackers.wandb import Wandb

from llmft.api import EnvironmentFault, Progress, RecipeError, RunInfo, StageInfo
from llmft.testing import TrackerContract
from tests.extended import extended

KEY = "0123456789abcdef0123456789abcdef01234567"
STAGE = StageInfo("sft", "lora", "sft", 1_000, 100_000, 900, 12_000, 3_000, 20)
RECIPE = {"recipe": 1, "name": "trivia", "seed": 17, "stages": [{"name": "sft"}]}


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("NETRC", raising=False)
    for name in ("API_KEY", "MODE", "BASE_URL", "PROJECT", "CONFIG_DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


class TestWandbContract(TrackerContract):
    method_class = Wandb
    configs = [{"mode": "offline", "project": "trivia", "tags": ["a", "b"], "group": "g"}]


def told(monkeypatch, folder: Path, steps: int = 3, **settings) -> tuple[str, float, float]:
    """Tell a whole run; return what was said, the longest wait while it ran, and at its end."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    tracker = Wandb(Wandb.Config(**settings))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    tracker.run_started(RunInfo("trivia", folder, RECIPE, ("sft",)))
    tracker.note("the first remark")
    tracker.stage_started(STAGE)
    tracker.note("another, " + 600 * "x")
    tracker.scored("sft", "before", {"exact_match": 0.125})
    for step in range(1, steps + 1):
        metrics = {"loss": 0.0625 * step}
        tracker.progress(Progress("sft", "train", step, steps, metrics, logged=True))
    tracker.scored("sft", "after", {"exact_match": 0.875})
    tracker.stage_finished("sft", {"metrics": {"train_loss": 0.5}})
    ran = time.monotonic() - began
    began = time.monotonic()
    tracker.run_finished({"status": "done"})
    return out.getvalue(), ran, time.monotonic() - began


def kept(folder: Path) -> tuple[str, list[dict[str, str]]]:
    """Return the folder that wandb would send, and the numbers in each of its records."""
    from wandb.proto import wandb_internal_pb2 as pb

    (place,) = (folder / "wandb").glob("*run-*")
    (file,) = place.glob("*.wandb")
    data, at, found = file.read_bytes(), 7, []
    while at + 7 <= len(data):  # checksum, length, type of a piece; small runs have whole ones only
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        assert kind == 1
        record = pb.Record()
        record.ParseFromString(data[at + 7 : at + 7 + length])
        at += 7 + length
        notes = [item for item in record.summary.update if item.key == "notes"]
        items = [*record.history.item, *record.run.config.update, *notes]
        found.append({i.key or "/".join(i.nested_key): i.value_json for i in items})
    return str(place), found


@pytest.mark.parametrize(("mode", "named", "host"), [
    ("auto", {}, "api.wandb.ai"),
    ("online", {"WANDB_BASE_URL": "https://me:secret@wandb.here:8080"}, "wandb.here"),
    ("offline", {}, ""),
    ("auto", {"WANDB_MODE": "offline"}, ""),
])  # fmt: skip
def test_it_declares_the_host_that_it_would_tell(monkeypatch, mode, named, host) -> None:
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    assert Wandb(Wandb.Config(mode=mode)).contacts == host


def test_n2_without_a_key_the_run_goes_on_and_the_files_are_complete(monkeypatch, tmp_path):
    canaries = {
        "HF_TOKEN": "hf_canaryA1B2C3D4E5F6",
        "MY_PASSWORD": "canary-password",
        "AWS_SECRET_ACCESS_KEY": "canary-aws",
        "SOME_SETTING": "canary-setting",
    }
    for name, value in canaries.items():
        monkeypatch.setenv(name, value)
    said, ran, ended = told(monkeypatch, tmp_path / "run", project="p", name="n")
    place, records = kept(tmp_path / "run")
    assert said == (
        f"note: wandb is offline (there is no key: wandb login); afterwards: wandb sync {place}\n"
    )
    assert ran < 0.5
    assert ended < 10
    history = [r for r in records if "sft/step" in r and "_step" in r]
    assert [float(r["sft/loss"]) for r in history if "sft/loss" in r] == [0.0625, 0.125, 0.1875]
    assert [r["sft/step"] for r in history] == ["0", "1", "2", "3", "3"]
    assert history[0]["sft/before/exact_match"] == "0.125"
    assert history[-1]["sft/after/exact_match"] == "0.875"
    assert any(r.get("seed") == "17" for r in records)
    first, second = json.loads(next(r["notes"] for r in reversed(records) if "notes" in r)).split(
        "\n"
    )
    assert first == "the first remark"
    assert len(second) == 500
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(written) >= 2
    for path in written:
        data = path.read_bytes()
        assert not [v for v in (*canaries.values(), KEY) if v.encode() in data], path


@pytest.mark.extended
def test_the_answers_are_told_as_a_table_where_the_recipe_asks_for_it(monkeypatch, tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    samples = [
        {"when": when, "prompt": prompt, "answer": f"{prompt[-1]} {when}"[-20:]}
        for when in ("before", "after")
        for prompt in ("Who wrote it?", chat)
    ]
    tables = {}
    for name, asked in (("with", True), ("without", False)):
        folder = tmp_path / name
        folder.mkdir()
        tracker = Wandb(Wandb.Config(mode="offline", log_completions=asked))
        tracker.run_started(RunInfo("trivia", folder, RECIPE, ("sft",)))
        tracker.stage_finished("sft", {"metrics": {}, "samples": samples})
        began = time.monotonic()  # a busy machine takes longer than a run would wait at its end
        while asked and not list(folder.rglob("*.table.json")) and time.monotonic() < began + 60:
            time.sleep(0.1)
        tracker.run_finished({})
        tables[name] = [json.loads(path.read_text()) for path in folder.rglob("*.table.json")]
    assert tables["without"] == []
    ((table),) = tables["with"]
    assert table["columns"] == ["prompt", "before", "after"]
    assert [row[0] for row in table["data"]] == ["Who wrote it?", "system: Be brief.\nuser: Who?"]
    assert table["data"][0][1:] == ["? before", "? after"]


def test_n1_a_server_that_never_answers_costs_the_run_nothing(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as hole:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{hole.getsockname()[1]}")
        said, ran, ended = told(monkeypatch, tmp_path / "run")
    assert said.count("\n") == 1
    assert "wandb is offline (127.0.0.1 " in said
    assert "afterwards: wandb sync " in said
    assert ran < 0.5
    assert ended < 10
    assert any("sft/loss" in r for r in kept(tmp_path / "run")[1])
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


def test_a_name_that_nobody_knows_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.invalid")
    said, ran, ended = told(monkeypatch, tmp_path / "run")
    assert "wandb is offline (wandb.invalid " in said
    assert ran < 0.5
    assert ended < 10


class FakeServer(BaseHTTPRequestHandler):
    """Answers `answers` questions with `status` and `body`, and keeps what it was sent."""

    status, body, answers = 401, b"{}", 1_000
    seen: list[str] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(self.headers.get("Authorization", ""))
        if len(self.seen) > self.answers:
            time.sleep(30)
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    handler = type("Handler", (FakeServer,), {"seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{http.server_port}")
        yield handler
        http.shutdown()


def test_n1_a_refused_key_is_told(server, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    said, ran, ended = told(monkeypatch, tmp_path / "run")
    assert "wandb is offline (127.0.0.1 refuses the key: wandb login --relogin)" in said
    assert KEY not in said
    assert server.seen
    assert ran < 0.5
    assert ended < 10


class Elsewhere(FakeServer):
    """A server that nobody chose: it would take everything."""

    status, body = 200, b'{"data": {"viewer": {"id": "me"}}}'


@pytest.fixture
def elsewhere():
    """A server on the loopback, as `.url`, that is not the user's, with what it was sent."""
    handler = type("Handler", (Elsewhere,), {"seen": [], "do_GET": FakeServer.do_POST})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
        handler.url = f"http://localhost:{http.server_port}"
        yield handler
        http.shutdown()


@pytest.mark.parametrize("mode", ["auto", "online"])
@pytest.mark.parametrize("named", extended(["environment", "home", "relative"], ["environment"]))
def test_files_of_the_working_folder_and_of_the_run_do_not_move_the_server(
    server, elsewhere, monkeypatch, tmp_path, mode, named
):
    server.status, server.body = 200, b'{"data": {"viewer": {"id": "me"}}}'
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    work, run, mine = tmp_path / "work", tmp_path / "work/run", os.environ["WANDB_BASE_URL"]
    if named != "environment":
        monkeypatch.delenv("WANDB_BASE_URL")
        place = tmp_path / "home/.config/wandb" if named == "home" else work / "mine"
        place.mkdir(parents=True)
        (place / "settings").write_text(f"[default]\nbase_url = {mine}\n")
    if named == "relative":
        monkeypatch.setenv("WANDB_CONFIG_DIR", "mine")
    for folder in (work, run):
        for name in ("wandb", ".wandb", ".config/wandb"):
            (folder / name).mkdir(parents=True)
            (folder / name / "settings").write_text(
                f"[default]\nbase_url = {elsewhere.url}\napi_key = {KEY}\nroot_dir = /\n"
            )
    (work / ".env").write_text(f"WANDB_BASE_URL={elsewhere.url}\n")
    monkeypatch.chdir(work)
    said, _, _ = told(monkeypatch, Path("run"), mode=mode, project="p")
    assert elsewhere.seen == []
    assert server.seen
    assert "afterwards: wandb sync run/" in said


@pytest.mark.parametrize("status", extended([302, 307], [307]))
def test_a_redirect_carries_no_key(server, elsewhere, monkeypatch, tmp_path, status):
    class Redirecting(server):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.seen.append(self.headers.get("Authorization", ""))
            self.send_response(self.status)
            self.send_header("Location", f"{elsewhere.url}{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()

    monkeypatch.setattr(server, "do_POST", Redirecting.do_POST)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    server.status = status
    said, _, _ = told(monkeypatch, tmp_path / "auto")
    assert "wandb is offline (127.0.0.1 sends the key on to another address" in said
    assert elsewhere.seen == []
    told(monkeypatch, tmp_path / "online", mode="online", project="p")
    assert set(elsewhere.seen) <= {""}


def test_an_address_that_programs_read_differently_is_refused(monkeypatch):
    for odd in ("https://a.example\\\\@b.example", "ftp://a.example", "https://a b", "//a.example"):
        monkeypatch.setenv("WANDB_BASE_URL", odd)
        with pytest.raises(EnvironmentFault, match="no plain http address"):
            Wandb(Wandb.Config())


def test_n3_a_network_that_dies_after_the_first_answer_ends_in_files_and_one_command(
    server, monkeypatch, tmp_path
):
    server.status, server.body = 200, b'{"data": {"viewer": {"id": "me"}}}'
    netrc = tmp_path / "home" / ".netrc"
    host = os.environ["WANDB_BASE_URL"].removeprefix("http://")
    netrc.write_text(f"machine {host}\nlogin user\npassword {KEY}\n")
    netrc.chmod(0o600)
    said, ran, ended = told(monkeypatch, tmp_path / "run")
    assert "no key" not in said
    assert "afterwards: wandb sync " in said
    assert ran < 0.5
    assert ended < 11


def test_n2_it_needs_no_standard_input_and_no_terminal(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from llmft.api import RunInfo; from llmft_trackers.wandb import Wandb\n"
        "assert 'wandb' not in sys.modules\n"
        "tracker = Wandb(Wandb.Config())\n"
        "tracker.run_started(RunInfo('r', Path(sys.argv[1]), {}, ('sft',)))\n"
        "tracker.run_finished({})\n"
        "assert 'wandb' not in sys.modules\n"
    )
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" "$2" <&-', sys.executable, code, str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "wandb is offline" in done.stdout


def test_a_missing_wandb_is_found_when_the_recipe_is_read(monkeypatch):
    monkeypatch.setattr("llmft_trackers.reporter.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="needs the package wandb") as caught:
        Wandb.Config()
    assert caught.value.faults[0].fix == "pip install wandb"


def test_a_project_that_wandb_would_refuse_is_found_when_the_recipe_is_read():
    with pytest.raises(RecipeError, match="holds '/'") as caught:
        Wandb.Config(project="my-team/trivia")
    assert caught.value.faults[0].fix == "write entity: my-team, project: trivia"
    with pytest.raises(RecipeError, match="holds '#'"):
        Wandb.Config(project="trial #3")
    with pytest.raises(RecipeError, match="longer than 128"):
        Wandb.Config(project="x" * 129)
    assert Wandb.Config(project="x" * 128, entity="my-team").project == "x" * 128


@pytest.mark.extended
def test_a_server_that_hangs_after_its_first_answer_costs_ten_seconds_at_most(
    server, monkeypatch, tmp_path
):
    server.status, server.body, server.answers = 200, b'{"data": {"viewer": {"id": "me"}}}', 1
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    said, ran, ended = told(monkeypatch, tmp_path / "run")
    assert said.startswith("note: wandb ")
    assert said.count("\n") == 1
    assert ran < 0.5
    assert ended < 12
    assert len(server.seen) > 1


def test_a_process_that_dies_in_mid_run_is_told_once_and_harms_nobody(monkeypatch, tmp_path):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    tracker = Wandb(Wandb.Config(mode="offline"))
    tracker.run_started(RunInfo("trivia", tmp_path, RECIPE, ("sft",)))
    tracker._process._process.kill()
    for step in range(2_000):
        tracker.progress(Progress("sft", "train", step, 2_000, {"loss": 1.0}, logged=True))
    tracker.run_finished({})
    assert out.getvalue() == (
        "note: wandb did not receive everything; metrics.jsonl has every number\n"
    )
