"""Commands that show what is there: methods, recipes, schema, codes, the machine.

Each imports what it needs inside, so that the light ones answer before torch could be loaded.
"""

from __future__ import annotations

from typing import Annotated

import typer

from llmft.api.kinds import Kind
from llmft.cli.app import Answer, Json, app, dumped


@app.command("list-plugins")
def list_plugins(json: Json = False) -> Answer:
    """List the installed methods, including broken ones."""
    from llmft.cli.commands.plugins import as_text, records

    rows, remarks = records()
    return {"plugins": rows, "remarks": remarks} if json else as_text(rows, remarks)


@app.command("list-recipes")
def list_recipes(json: Json = False) -> Answer:
    """List the recipes that come with llmft."""
    from llmft.cli.commands import shipped
    from llmft.cli.commands.output import table

    found = shipped.recipes()
    if json:
        return {"recipes": [item._asdict() | {"path": str(item.path)} for item in found]}
    rows = [(item.name, item.summary, str(item.path)) for item in found]
    return table(("recipe", "what it does", "file"), rows)


@app.command()
def show(
    method: Annotated[str, typer.Argument(help="A method, such as lora.")],
    kind: Annotated[
        Kind | None,
        typer.Option(help="Look among the methods of this kind only; default: all."),
    ] = None,
    json: Json = False,
) -> Answer:
    """Show a method's settings and capabilities."""
    from llmft.cli.commands.show import as_text, describe

    methods = describe(method, kind)
    return {"methods": methods} if json else as_text(methods)


@app.command()
def schema(json: Json = False) -> Answer:
    """Print the JSON Schema of a recipe, for editors."""
    from llmft.recipes.json_schema import recipe_schema
    from llmft.registry.registry import Registry

    return dumped(recipe_schema(Registry.discover()))  # JSON in any case


@app.command()
def explain(
    code: Annotated[str | None, typer.Argument(help="An error code, such as E012.")] = None,
    json: Json = False,
) -> Answer:
    """Explain an error code, or list all of them."""
    from llmft.cli.commands.explain import as_text, explanations

    found = explanations(code)
    return {"codes": found} if json else as_text(found)


@app.command()
def doctor(
    torch: Annotated[
        bool, typer.Option("--torch", help="Also ask torch which devices it can use; loads torch.")
    ] = False,
    deep: Annotated[bool, typer.Option("--deep", hidden=True)] = False,  # its former name
    json: Json = False,
) -> Answer:
    """Check the machine, the packages and the methods."""
    from llmft.cli.commands.doctor import as_text, examine

    report = examine(with_torch=torch or deep)
    return report if json else as_text(report)


@app.command("import")
def import_(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A configuration, a command in quotes, a file that holds one, or - for stdin."
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the recipe here; default: print it.")
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Report on a folder's configurations; writes nothing."),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Write the recipe although it needs your decision.")
    ] = False,
    peer: Annotated[
        str | None, typer.Option(help="Whose it is, such as axolotl; default: by its keys.")
    ] = None,
    trainer: Annotated[
        str | None, typer.Option(help="TRL's trainer, such as dpo; default: what the file says.")
    ] = None,
    rows: Annotated[
        str | None, typer.Option(metavar="FORM", help="The rows' form, such as chat or text.")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, metavar="N", help="How many processes it was run with."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="The adapter; default: what the command says.")
    ] = None,
    number: Annotated[
        int | None, typer.Option(metavar="N", help="Which command of the file, counted from 1.")
    ] = None,
    json: Json = False,
) -> Answer:
    """Turn another tool's configuration or command into a recipe."""
    from llmft.cli.commands import import_ as command
    from llmft.cli.commands import import_check, import_peer

    choices = import_peer.choices(peer, trainer, rows, processes)
    if check is not None:
        report = import_check.report(check, choices)
        return report.as_json() if json else import_check.as_text(report)
    imported = command.import_any(command.named(source), choices, method=method, number=number)
    if isinstance(imported, import_peer.PeerImport):
        text = import_peer.written(imported, anyway=anyway)
        if output:
            command.write(text, output)
        if json:
            return {"file": output, "recipe": text, **imported.as_json()}
        return import_peer.as_text(imported, output) if output else text.rstrip("\n")
    if output:
        command.write(imported.text, output)
    if json:
        return {"file": output, "recipe": imported.text, "changes": imported.changes}
    return command.as_text(imported, output) if output else imported.text.rstrip("\n")


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(help="What recipes will call the method.")],
    kind: Annotated[
        Kind,
        typer.Option(help="What the method is."),
    ],
    output: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The package's folder; default: ./llmft-NAME."),
    ] = None,
    json: Json = False,
) -> Answer:
    """Write a package of your own method, with tests that pass."""
    from llmft.cli.commands.new_plugin import as_text, write_plugin

    folder, files = write_plugin(name, kind, output)
    return {"folder": str(folder), "files": files} if json else as_text(folder, files)


@app.command()
def version(json: Json = False) -> Answer:
    """Print llmft's version."""
    from llmft import __version__

    return {"version": __version__} if json else f"llmft {__version__}"
