"""The command line. A command returns what to print; `main` alone prints, and sets exit codes."""

from __future__ import annotations

import copy
import io
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import Any

import typer

from llmft.api.errors import EnvironmentFault, Interrupted, LlmftError, RecipeError
from llmft.api.shown_text import escaped
from llmft.cli import info_commands, recipe_commands, run_commands
from llmft.cli.app import Answer, app, dumped
from llmft.cli.commands import shipped
from llmft.system import launcher, processes
from llmft.system.signals import noted_interrupts

# typer keeps the base class of its usage errors to itself.
_UsageError: Any = typer.BadParameter.__mro__[1]
# Importing these modules registers their commands with `app`.
COMMANDS = (recipe_commands, run_commands, info_commands)
# What a newcomer needs first stands first in --help.
_ORDER = [module.__name__ for module in COMMANDS]
app.registered_commands.sort(key=lambda command: _ORDER.index(str(command.callback.__module__)))


_ELSEWHERE = {
    "init": "new", "create": "new", "train": "run", "finetune": "run", "fine-tune": "run",
    "start": "run", "resume": "run --resume", "predict": "generate", "infer": "generate",
    "inference": "generate", "ask": "generate", "eval": "evaluate", "test": "run --smoke",
    "dry-run": "plan", "check": "validate", "lint": "validate", "convert": "import",
    "upload": "push", "download": "fetch", "list": "list-plugins", "env": "doctor",
    "recipes": "list-recipes",
}  # fmt: skip
"""What commands are called in other tools -> ours."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, and return its exit code.

    argv: default: those of the program, which one of several processes then ends by itself.
    """
    code = _run(argv)
    if argv is None and launcher.launch().count > 1:
        launcher.leave(code)
    return code


def _run(argv: Sequence[str] | None) -> int:
    """Run one command line: the one place where errors are caught."""
    args = list(sys.argv[1:] if argv is None else argv)
    show_trace = "--traceback" in args
    args = [arg for arg in args if arg != "--traceback"] or ["--help"]
    as_json = "--json" in args
    processes.shut_out_working_folder()
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the C locale must not turn a dash into a crash
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            with noted_interrupts():
                answer = _answer(args)
        except LlmftError as error:
            return _reported(error, as_json)
        except KeyboardInterrupt:
            return _reported(Interrupted(signal.SIGINT, "interrupted"), as_json)
        except BaseException as error:  # of a plugin's own kinds too: they end in one line
            if isinstance(error, OSError) and "--help" in args:  # typer prints it by itself
                raise
            return _bug(error, args[0], as_json, show_trace)
        return _printed(answer)
    except OSError as error:  # while printing
        # What is still buffered would fail once more, and loudly, when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # nobody reads on
            return 128 + 13  # as if SIGPIPE had ended us, which is what a shell expects
        what = f"the output cannot be written: {error.strerror}"
        return _reported(EnvironmentFault("E202", what, fix="free disk space there"), False)


def _open_closed_streams() -> None:
    """Let what is printed go nowhere where the caller has closed a stream (`>&-`)."""
    for name in ("stdin", "stdout", "stderr"):  # their numbers; the lowest free one is taken
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - stays open


def _answer(args: Sequence[str]) -> Answer:
    launcher.join_srun()
    launcher.refuse_for(args[0])
    args = ["--resume-auto" if word == "--resume=auto" else word for word in args]
    command = typer.main.get_command(_part_for(args))
    try:
        # Not `command.main`: it would print errors itself, and make an exit code of Ctrl-C.
        with command.make_context("llmft", list(args)) as context:
            answer: Answer | None = command.invoke(context)
            return answer or ""
    except typer.Exit:  # --help has printed itself
        return ""
    except _UsageError as error:
        context = error.ctx
        place = context.command_path if context else "llmft"
        what = error.format_message().rstrip(".")
        what = what[:1].lower() + what[1:]
        if (ours := _meant(args[0])) and what.startswith("no such command"):
            what = f"no such command '{args[0]}'"
            raise RecipeError("E090", what, fix=f"type: llmft {ours}") from error
        raise RecipeError("E090", what, fix=f"see '{place} --help'") from error


def _meant(word: str) -> str:
    """Return what to type for a word that is no command: another tool's, or a recipe's name."""
    if word in _ELSEWHERE:
        return _ELSEWHERE[word]
    is_recipe = word.endswith((".yaml", ".yml")) or word in {one.name for one in shipped.recipes()}
    return f"run {shlex.quote(word)}" if is_recipe else ""


def _part_for(args: Sequence[str]) -> typer.Typer:
    """Return the app with the command that is asked for alone; to build all takes 0.1 s.

    The whole app where no command of its is named, as in `llmft --help`.
    """
    asked = next((word for word in args if not word.startswith("-")), "")
    part = copy.copy(app)
    part.registered_commands = [one for one in app.registered_commands if _name(one) == asked]
    part.registered_groups = [group for group in app.registered_groups if group.name == asked]
    return part if part.registered_commands or part.registered_groups else app


def _name(command: Any) -> str:
    return command.name or typer.main.get_command_name(command.callback.__name__)


def _printed(answer: Answer) -> int:
    from llmft.cli.commands.output import printable

    text = dumped({"ok": True} | answer) if isinstance(answer, dict) else printable(answer)
    if text:
        print(text)
    sys.stdout.flush()
    return 0


def _reported(error: LlmftError, as_json: bool) -> int:
    if (here := launcher.launch()).rank:
        launcher.give_way()
        if not isinstance(error, Interrupted):  # the first process was interrupted too
            print(f"{here}: {escaped(str(error))}", file=sys.stderr, flush=True)
    elif as_json:
        errors = [fault.as_json() for fault in error.faults]
        print(dumped({"ok": False, "exit_code": error.exit_code, "errors": errors}), flush=True)
    else:
        print(_faults_as_text(error), file=sys.stderr, flush=True)
    return error.exit_code


def _faults_as_text(error: LlmftError) -> str:
    """Return each fault as one line, with the source line and a caret under it where there is one.

    A pipe gets them too: a log in which the mistake can be seen needs no second run.
    """
    from llmft.cli.commands.render import encodable, render_faults
    from llmft.recipes.tree import visible

    encoding = sys.stderr.encoding or "ascii"
    terminal = sys.stderr.isatty()
    if not terminal and not any(fault.place and fault.place.source for fault in error.faults):
        return encodable("\n".join(visible(fault.line()) for fault in error.faults), encoding)
    color = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    width = shutil.get_terminal_size().columns if terminal else 120
    return render_faults(error.faults, color, width, encoding, wrap=terminal).rstrip("\n")


def _bug(error: BaseException, command: str, as_json: bool, show_trace: bool) -> int:
    from llmft.cli.commands import attribution, crash

    if show_trace:
        print(escaped(crash.trace(error)), file=sys.stderr)
    if foreseen := attribution.put_to_its_cause(error, command):
        return _reported(foreseen, as_json)
    if show_trace:
        where = "the traceback is above"
    else:
        # The engine marks what passes through it with the folder of its run.
        report = crash.write_report(error, command, getattr(error, "run_folder", None))
        where = f"the traceback is in '{report}'"
    what = crash.redacted(f"internal error: {type(error).__name__}: {error}").splitlines()[0]
    return _reported(LlmftError("E900", what, fix=f"please report it; {where}"), as_json)


if __name__ == "__main__":
    sys.exit(main())
