"""The command line. Every command returns what to print; `main` alone prints, and sets exit codes.

Commands import what they need inside, so that the light ones answer before torch could be loaded.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from llmft.errors import Interrupted, LlmftError, RecipeError

# typer keeps the base class of its usage errors to itself.
_UsageError: Any = typer.BadParameter.__mro__[1]

Answer = str | dict[str, Any]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe, e.g. seed=3. Repeatable."),
]

app = typer.Typer(
    name="llmft",
    help="Fine-tune a language model from one recipe, and see an honest score.",
    epilog="--traceback, anywhere on the line, shows where an internal error came from.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's path, or a shipped recipe's name.")],
    run_folder: Annotated[
        str | None, typer.Argument(help="With --resume: the run; default: the newest unfinished.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that stopped.")
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Try the recipe with a tiny random model, in seconds.")
    ] = False,
    set: Set = None,
    output_dir: Annotated[
        str | None, typer.Option(help="Make the run folder under this folder.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show errors only.")] = False,
    json: Json = False,
) -> Answer:
    """Train what a recipe says, and score it before and after."""
    from llmft.commands.run import run_recipe_file

    overrides = [*(set or []), *([f"output_dir={_dumped(output_dir)}"] if output_dir else [])]
    return run_recipe_file(
        recipe, overrides, quiet=quiet, as_json=json, resume=resume, run_folder=run_folder,
        smoke=smoke,
    )  # fmt: skip


@app.command()
def validate(
    recipes: Annotated[list[str], typer.Argument(help="Recipes: paths or shipped names.")],
    set: Set = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Check against the model's config too (loads torch).")
    ] = False,
    json: Json = False,
) -> Answer:
    """Find every mistake in recipes, without training."""
    from llmft.commands.validate import as_text, check

    checked = check(recipes, set or [], deep=deep)
    return {"recipes": checked} if json else as_text(checked)


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's path, or a shipped recipe's name.")],
    set: Set = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Plan for a GPU of this memory, e.g. 24GB."),
    ] = None,
    json: Json = False,
) -> Answer:
    """Show what a recipe would train, take and write."""
    from llmft.commands.plan import as_json, as_text
    from llmft.commands.plan import plan as planned

    verdict = planned(recipe, set or [], gpu)
    return as_json(verdict) if json else as_text(verdict)


@app.command("list-plugins")
def list_plugins(json: Json = False) -> Answer:
    """List the installed methods, broken ones too."""
    from llmft.commands.plugins import as_text, records

    rows, remarks = records()
    return {"plugins": rows, "remarks": remarks} if json else as_text(rows, remarks)


@app.command("list-recipes")
def list_recipes(json: Json = False) -> Answer:
    """List the recipes that llmft brings along."""
    from llmft.commands import shipped
    from llmft.commands.output import table

    found = shipped.recipes()
    if json:
        return {"recipes": [item._asdict() | {"path": str(item.path)} for item in found]}
    rows = [(item.name, item.summary, str(item.path)) for item in found]
    return table(("recipe", "what it does", "file"), rows)


@app.command()
def show(
    method: Annotated[str, typer.Argument(help="A method, such as lora.")],
    kind: Annotated[
        str | None, typer.Option(help="adapter, alignment, dataset or tracker; default: all.")
    ] = None,
    json: Json = False,
) -> Answer:
    """Show a method's settings and capabilities."""
    from llmft.commands.show import as_text, describe

    methods = describe(method, kind)
    return {"methods": methods} if json else as_text(methods)


@app.command()
def schema(json: Json = False) -> Answer:
    """Print the JSON Schema of a recipe, for editors."""
    from llmft.registry import Registry
    from llmft.schema import recipe_schema

    return _dumped(recipe_schema(Registry.discover()))  # JSON in any case


@app.command()
def explain(
    code: Annotated[str | None, typer.Argument(help="An error code, such as E012.")] = None,
    json: Json = False,
) -> Answer:
    """Tell what an error code means, or list them."""
    from llmft.commands.explain import as_text, explanations

    found = explanations(code)
    return {"codes": found} if json else as_text(found)


@app.command()
def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Ask torch what it sees too.")] = False,
    json: Json = False,
) -> Answer:
    """Show what is installed and can work here."""
    from llmft.commands.doctor import as_text, examine

    report = examine(deep=deep)
    return report if json else as_text(report)


@app.command("import")
def import_(
    command: Annotated[
        str,
        typer.Argument(help="A command line in quotes, a file that holds one, or '-' for stdin."),
    ],
    output: Annotated[
        str | None, typer.Option(help="Write the recipe here; default: print it.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="The adapter; default: what the command says.")
    ] = None,
    number: Annotated[
        int | None, typer.Option(help="Which command of the file, counted from 1.")
    ] = None,
    json: Json = False,
) -> Answer:
    """Write the recipe of another program's command line."""
    from llmft.commands.import_ import as_text, import_command, write

    imported = import_command(command, method=method, number=number)
    if output:
        write(imported.text, output)
    if json:
        return {"file": output, "recipe": imported.text, "changes": imported.changes}
    return as_text(imported, output) if output else imported.text.rstrip("\n")


@app.command()
def generate(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="What to ask.")],
    stage: Annotated[str | None, typer.Option(help="Default: the last finished stage.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=100_000)] = 64,
    no_adapter: Annotated[
        bool, typer.Option("--no-adapter", help="Answer as the base model does.")
    ] = False,
    json: Json = False,
) -> Answer:
    """Answer questions with a trained model."""
    from llmft.commands.generate import answers

    found = answers(run, questions, stage, max_new_tokens, adapter=not no_adapter)
    return {"answers": found} if json else "\n".join(item["answer"] for item in found)


@app.command()
def score(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    file: Annotated[
        str, typer.Argument(help="Records with text; or prompt, and completion or a pair.")
    ],
    stage: Annotated[
        str | None, typer.Option(help="Default: the last that made a reward model.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Write lines of JSON here; default: print them.")
    ] = None,
    json: Json = False,
) -> Answer:
    """Score texts with a trained reward model."""
    from llmft.commands.score import as_text, scores

    found = scores(run, file, stage)
    return {"scores": found} if json else as_text(found, output)


@app.command()
def push(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    stage: Annotated[
        str | None, typer.Option(help="Default: as the recipe says, else the last finished stage.")
    ] = None,
    repo_id: Annotated[
        str | None,
        typer.Option(help="Where to: my-name/my-adapter; default: the recipe's."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see it; default: as the recipe says.")
    ] = False,
    json: Json = False,
) -> Answer:
    """Send a finished adapter to the hub, with a card."""
    from llmft.commands.push import as_text, pushed

    sent = pushed(run, stage, repo_id, public=public)
    return sent if json else as_text(sent)


@app.command()
def version(json: Json = False) -> Answer:
    """Print llmft's version."""
    from llmft import __version__

    return {"version": __version__} if json else f"llmft {__version__}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, and return its exit code: the one place where errors are caught."""
    args = list(sys.argv[1:] if argv is None else argv)
    show_trace = "--traceback" in args
    args = [arg for arg in args if arg != "--traceback"] or ["--help"]
    as_json = "--json" in args
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the C locale must not turn a dash into a crash
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            answer = _answer(args)
        except LlmftError as error:
            return _reported(error, as_json)
        except KeyboardInterrupt:
            return _reported(Interrupted(signal.SIGINT, "interrupted"), as_json)
        except (Exception, SystemExit) as error:
            if isinstance(error, BrokenPipeError) and "--help" in args:
                raise
            return _bug(error, args[0], as_json, show_trace)
        return _printed(answer)
    except BrokenPipeError:  # while printing: nobody reads on
        # What is still buffered would fail once more, and loudly, when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as if SIGPIPE had ended us, which is what a shell expects


def _answer(args: Sequence[str]) -> Answer:
    command = typer.main.get_command(app)
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
        raise RecipeError("E090", what, fix=f"see '{place} --help'") from error


def _printed(answer: Answer) -> int:
    text = _dumped({"ok": True} | answer) if isinstance(answer, dict) else answer
    if text:
        print(text)
    sys.stdout.flush()
    return 0


def _reported(error: LlmftError, as_json: bool) -> int:
    if as_json:
        errors = [fault.as_json() for fault in error.faults]
        print(_dumped({"ok": False, "exit_code": error.exit_code, "errors": errors}), flush=True)
    else:
        print(_faults_as_text(error), file=sys.stderr, flush=True)
    return error.exit_code


def _faults_as_text(error: LlmftError) -> str:
    """Return each fault as one line, with the source line and a caret under it where there is one.

    A pipe gets them too: a log in which the mistake can be seen needs no second run.
    """
    from llmft.commands.render import encodable, render_faults

    encoding = sys.stderr.encoding or "ascii"
    terminal = sys.stderr.isatty()
    if not terminal and not any(fault.place and fault.place.source for fault in error.faults):
        return encodable("\n".join(fault.line() for fault in error.faults), encoding)
    color = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    width = shutil.get_terminal_size().columns if terminal else 120
    return render_faults(error.faults, color, width, encoding).rstrip("\n")


def _bug(error: BaseException, command: str, as_json: bool, show_trace: bool) -> int:
    from llmft.commands import crash

    if show_trace:
        print(crash.trace(error), file=sys.stderr)
        where = "the traceback is above"
    else:
        # The engine marks what passes through it with the folder of its run.
        report = crash.write_report(error, command, getattr(error, "run_folder", None))
        where = f"the traceback is in '{report}'"
    what = crash.redacted(f"internal error: {type(error).__name__}: {error}").splitlines()[0]
    return _reported(LlmftError("E900", what, fix=f"please report it; {where}"), as_json)


def _dumped(data: Any) -> str:
    return json.dumps(data, indent=2, default=str)


if __name__ == "__main__":
    sys.exit(main())
