"""No program runs, and no module is imported, that the user did not install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmft.system import processes
from tests.end_to_end.trust.conftest import ran

RECIPE = """
recipe: 1
name: t
model: {path: "embedded:model"}
stages:
  - name: sft
    adapter: {method: lora, r: 2}
    alignment: {method: sft}
    data: {method: triviaqa, path: "embedded:trivia", limit: 16}
    train: {max_steps: 1}
trackers: [{method: jsonl}, {method: wandb, mode: offline}]
"""
# LLaMA-Factory's, with rewards by a module that is there.
PEER = """
model_name_or_path: x/y
stage: sft
finetuning_type: lora
dataset: mine
reward_funcs: rewards.py
plugins: [rewards]
"""
EVERY_COMMAND = """
import os, sys, glob, signal, socket, time
from llmft.cli.main import main
def llmft(*words, wanted=0):
    code = main(list(words))
    if code != wanted:
        sys.exit(f"{words}: {code}")
llmft("version")
llmft("list-plugins")
llmft("list-recipes")
llmft("show", "lora")
llmft("explain", "E001")
llmft("schema")
llmft("doctor", "--deep")
llmft("import", "python dora.py --lora_r 8", wanted=2)
llmft("validate", "r.yaml", "--deep")
llmft("plan", "r.yaml")
llmft("fetch", "r.yaml")
llmft("run", "r.yaml", "--quiet")
run = glob.glob("runs/t/*")[0]
llmft("run", "r.yaml", run, "--resume", "--quiet")
llmft("run", "r.yaml", "--smoke", "--quiet")
llmft("generate", run, "Which country?")
llmft("score", run, "rows.jsonl", wanted=6)
llmft("rank", "s.jsonl", "--status")
llmft("push", run, "--repo-id", "me/x", wanted=4)
few = ("--max-new-tokens", "2")
llmft("preview", "r.yaml", "--html", "p.html")
llmft("chat", run, "--message", "hi", *few)
llmft("evaluate", run, "--metrics", "loss", "--split", "validation", "--limit", "2")
llmft("report", run, "--data", "curves.csv")
llmft("runs", ".")
llmft("compare", run, run, "--output", "compared.html")
llmft("merge", run, "--output", "merged")
llmft("export", run, "--to", "vllm", "--output", "adapter")
llmft("verify", "export", run, "merged", "--prompts", "1", *few)
llmft("verify", "export", run, "adapter", "--prompts", "1", *few)
llmft("import", "--check", ".")
llmft("import", "factory.yaml", "--anyway", "--output", "new.yaml", wanted=2)
llmft("new-plugin", "my_reward", "--kind", "reward", "--output", "plugin")
llmft("verify", "resume", "r.yaml", "--kills", "1", "--steps", "2")
llmft("verify", "losses", "r.yaml", "--steps", "1")
llmft("reproduce", run)
llmft("watch", run, "--once")
llmft("new", "first.yaml", "--model", "embedded:model", "--data", "rows.jsonl")
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
child = os.fork()
if not child:
    os._exit(main(["serve", run, "--port", str(port)]))
end = time.monotonic() + 120
while True:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        break
    except OSError:
        if time.monotonic() > end or os.waitpid(child, os.WNOHANG)[0]:
            sys.exit("nothing serves")
        time.sleep(0.1)
llmft("verify", "export", run, f"http://127.0.0.1:{port}", "--prompts", "1", *few)
os.kill(child, signal.SIGTERM)
if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 143:
    sys.exit("serve did not end")
"""


def test_every_command_is_tried_among_hostile_files():
    golden = (Path(__file__).parents[2] / "golden" / "cli.txt").read_text()
    commands = [line.split()[1:] for line in golden.splitlines() if line.startswith("llmft ")]
    assert len(commands) > 25
    for words in commands:
        assert ", ".join(map(json.dumps, words)) in EVERY_COMMAND, words


@pytest.mark.extended
def test_hostile_files_of_every_kind_are_not_used_by_any_command(hostile):
    (hostile / "r.yaml").write_text(RECIPE)
    (hostile / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (hostile / "factory.yaml").write_text(PEER)
    sample = {"prompt": "p", "completions": ["a", "b"], "answers": []}
    (hostile / "s.jsonl").write_text(json.dumps(sample) + "\n")
    place = hostile.parent / "bin"  # as a console script lies
    place.mkdir()
    (place / "every.py").write_text(EVERY_COMMAND)
    names = ("HF_TOKEN", "WANDB_API_KEY", "WANDB_BASE_URL")
    variables = {k: v for k, v in os.environ.items() if k not in names}
    variables |= {"HF_HUB_OFFLINE": "1", "HOME": str(hostile.parent), "LLMFT_CACHE": "off"}
    # The user's own environment may mean the working folder without saying so.
    variables["PATH"] = os.pathsep.join([".", "", os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, str(place / "every.py")],
        cwd=hostile, env=variables, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert ran(hostile) == []
    lock = next(hostile.glob("runs/t/*/lock.json"))
    assert json.loads(lock.read_text())["git"] == {"commit": "a1" * 20}


def test_python_m_does_not_import_from_the_working_folder(hostile):
    (hostile / "llmft.py").unlink()  # what `python -m` itself looks for
    done = subprocess.run(
        [sys.executable, "-m", "llmft", "version"],
        cwd=hostile, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("llmft "), done.stderr
    assert ran(hostile) == []


def test_a_tool_in_the_working_folder_is_not_the_systems(monkeypatch, hostile):
    monkeypatch.chdir(hostile)
    monkeypatch.setenv("PATH", f".:{hostile}")
    assert processes.answer_of("nvidia-smi", seconds=5) is None
    monkeypatch.setenv("PATH", os.pathsep.join([".", os.environ["PATH"], "/bin", "/usr/bin"]))
    assert processes.answer_of("uname", "-s", seconds=5) == f"{os.uname().sysname}\n"
    assert ran(hostile) == []
