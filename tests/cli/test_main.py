"""The one error boundary: exit codes, one line each, and no traceback whatever happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from llmft.api.errors import (
    CheckpointError,
    DataError,
    EnvironmentFault,
    PluginError,
    RecipeError,
    StageError,
    TrustError,
)
from llmft.cli import main
from llmft.cli.commands import crash


@pytest.fixture
def failing(monkeypatch):
    """Let `version` raise."""

    def fail_with(error: BaseException) -> None:
        def answer(args):
            raise error

        monkeypatch.setattr(main, "_answer", answer)

    return fail_with


@pytest.mark.parametrize(
    ("args", "what", "fix"),
    [
        (("runn",), "no such command 'runn'", "llmft --help"),
        (("train", "a.yaml"), "no such command 'train'", "type: llmft run"),
        (("quickstart",), "no such command 'quickstart'", "type: llmft run quickstart"),
        (("my.yaml",), "no such command 'my.yaml'", "type: llmft run my.yaml"),
        (("run",), "missing argument", "llmft run --help"),
        (("run", "a.yaml", "--sett", "x=1"), "no such option: --sett", "llmft run --help"),
        (("generate", "a", "b", "--max-new-tokens", "0"), "--max-new-tokens", "generate --help"),
        (("--nosuch",), "no such option: --nosuch", "llmft --help"),
    ],
)
def test_a_mistyped_command_line_is_one_line_and_exit_code_2(llmft, args, what, fix):
    ran = llmft(*args)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("error[E090] ")
    assert ran.err.count("\n") == 1
    assert what in ran.err
    assert fix in ran.err


@pytest.mark.parametrize(
    ("args", "built"),
    [(("version",), ["version"]), (("verify", "losses", "--help"), ["verify"]),
     (("list-plugins", "--help"), ["list-plugins"]), (("import", "--help"), ["import"])],
    ids=lambda part: part[0],
)  # fmt: skip
def test_only_the_command_that_is_asked_for_is_built(llmft, monkeypatch, args, built):
    groups, get_command = [], typer.main.get_command
    monkeypatch.setattr(
        typer.main, "get_command", lambda app: groups.append(get_command(app)) or groups[-1]
    )
    assert llmft(*args).code == 0
    assert list(groups[0].commands) == built
    assert llmft("--help").code == 0
    assert len(groups[1].commands) > 20


def test_a_mistyped_command_line_is_json_where_json_is_asked_for(llmft):
    ran = llmft("show", "--json")
    assert ran.data["ok"] is False
    assert ran.data["exit_code"] == ran.code == 2
    assert ran.data["errors"][0]["code"] == "E090"
    assert ran.err == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecipeError, 2), (DataError, 3), (EnvironmentFault, 4), (StageError, 5),
        (CheckpointError, 6), (PluginError, 7), (TrustError, 8),
    ],
)  # fmt: skip
def test_every_error_has_its_exit_code(llmft, failing, error, code):
    failing(error("E100", "it is so", fix="do this"))
    assert llmft("version") == (code, "", "error[E100] it is so — fix: do this\n")


def test_ctrl_c_is_one_line_and_130(llmft, failing):
    failing(KeyboardInterrupt())
    assert llmft("version") == (130, "", "error[E130] interrupted\n")


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("by zero"), SystemExit(0), RecursionError(), GeneratorExit()]
)
def test_e2_a_bug_is_one_line_with_its_traceback_in_a_file(llmft, failing, error):
    failing(error)
    ran = llmft("version")
    assert ran.code == 1
    assert ran.err.startswith("error[E900] internal error: ")
    assert ran.err.count("\n") == 1
    assert "please report it" in ran.err
    path = Path(re.search(r"the traceback is in '(.+)'", ran.err)[1])
    text = path.read_text()
    path.unlink()
    assert "Traceback" in text
    assert "command: version" in text
    assert "torch: " in text


def test_a_bug_shows_its_traceback_where_asked(llmft, failing):
    failing(ZeroDivisionError("by zero"))
    ran = llmft("version", "--traceback")
    assert ran.code == 1
    assert "Traceback" in ran.err
    assert "the traceback is above" in ran.err


def test_a_bug_is_json_where_json_is_asked_for(llmft, failing):
    failing(ZeroDivisionError("by zero"))
    data = llmft("version", "--json").data
    assert data["exit_code"] == 1
    assert data["errors"][0]["code"] == "E900"


def test_e2_s2_a_crash_report_holds_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "canary-in-the-environment")
    monkeypatch.setenv("SOME_SETTING", "an-unrelated-value")
    token = "hf_" + "Ab3" * 10
    error = ValueError(f"401 for canary-in-the-environment and {token}")
    text = crash.write_report(error, "run", tmp_path).read_text()
    assert "401 for" in text
    assert "canary" not in text
    assert token not in text
    assert "an-unrelated-value" not in text


def test_a_crash_report_goes_to_a_temporary_file_where_the_run_folder_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    path = crash.write_report(ValueError("x"), "run", tmp_path / "file")
    assert "ValueError: x" in path.read_text()
    path.unlink()


@pytest.fixture
def gone(monkeypatch, tmp_path):
    """Stand in a folder that was deleted meanwhile."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()


@pytest.mark.parametrize("args", [["list-recipes"], ["validate", "quickstart"], ["doctor"]])
def test_e3_a_working_folder_that_is_gone_is_no_error(llmft, gone, args):
    assert (llmft(*args).code, llmft(*args).err) == (0, "")


@pytest.mark.parametrize("command", ["run", "plan"])
def test_e3_a_working_folder_that_is_gone_is_said_before_torch_ends_the_process(
    llmft, gone, command
):
    ran = llmft(command, "quickstart")
    assert ran.code == 4
    assert ran.err.startswith("error[E203] the working folder was deleted")


def test_e2_a_bug_is_reported_where_the_working_folder_is_gone(llmft, failing, gone):
    failing(ZeroDivisionError("by zero"))
    ran = llmft("version")
    assert ran.code == 1
    Path(re.search(r"the traceback is in '(.+)'", ran.err)[1]).unlink()


def test_e3_a_reader_that_leaves_is_no_error(process):
    # `true` has gone before the schema, which is larger than a pipe's buffer, is written.
    command = f"{sys.executable} -m llmft schema | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "141"
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("args", ["version", "validate --json", "--help"])
def test_t11_a_full_disk_behind_the_output_is_the_machines_fault(args):
    command = f"{sys.executable} -m llmft {args} > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    assert done.stderr.startswith("error[E202] the output cannot be written: No space left")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("columns", ["1", "80"])
def test_e3_a_poor_terminal_causes_no_traceback(process, recipe, columns):
    poor = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0",
            "PYTHONIOENCODING": "ascii", "COLUMNS": columns}  # fmt: skip
    done = process("validate", recipe, "--set", "seed=-1", env=poor)
    assert done.returncode == 2
    assert done.stderr.startswith("error[E023] --set seed=-1")
    assert done.stderr.isascii()
    assert "Traceback" not in done.stderr
    assert process("show", "lora", env=poor).returncode == 0


def test_nothing_that_is_piped_has_escape_codes(process, recipe):
    env = {**os.environ, "TERM": "xterm-256color"}
    for args in (("doctor",), ("run", recipe, "--set", "seed=-1")):
        done = process(*args, env=env)
        assert "\x1b" not in done.stdout + done.stderr


def test_a_terminal_gets_the_source_line_with_a_caret(llmft, recipe, monkeypatch, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(Path(recipe).read_text().replace("r: 4", "rr: 4"))
    monkeypatch.setattr(main.sys.stderr.__class__, "isatty", lambda self: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    ran = llmft("validate", str(path))
    assert "adapter: {method: lora, rr: 4}" in ran.err
    assert "^" in ran.err
    assert "\x1b[" in ran.err
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in llmft("validate", str(path)).err


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&-"])
def test_e3_a_stream_that_is_closed_is_no_error(closed):
    command = f"{sys.executable} -m llmft list-recipes {closed}; echo $? >&3"
    with_3 = f"exec 3>&1; {command}"
    done = subprocess.run(["bash", "-c", with_3], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("0\n")
    assert done.stderr == ""
