"""Commands, options, settings, codes and files that the texts name are there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from llmft.cli.commands import shipped
from llmft.cli.commands.fields import fields
from llmft.cli.error_codes import CODES
from llmft.recipes.recipe import Recipe, Stage
from llmft.registry.registry import Registry

ROOT = Path(__file__).parents[2]
HISTORY = {"CHANGELOG.md", "docs/mutants.md"}  # what was, and lines of code
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/*.yaml")]
}
TEXTS = {name: text for name, text in TEXTS.items() if name not in HISTORY}
TEXTS |= {f"llmft explain {code}": "\n".join(said) for code, said in CODES.items()}
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for folder in ("llmft", "plugins")
    for path in (ROOT / folder).rglob("*.py")
}


MANY = 100
EXTRA = re.compile(r"llmft\[([\w-]+)\]")


def _commands() -> dict[str, tuple[set[str], int]]:
    """Return each command with its options, and the most arguments that it takes."""
    found: dict[str, tuple[set[str], int]] = {}
    command = ""
    for line in (ROOT / "tests/golden/cli.txt").read_text("utf-8").splitlines():
        options, arguments = found.get(command, (set(), 0))
        if line.startswith("llmft "):
            command = line.removeprefix("llmft ")
            found[command] = ({"--help", "--traceback"}, 0)
        elif line.lstrip().startswith("--"):
            options.add(line.split()[0])
        else:
            found[command] = (options, MANY if "repeatable" in line else arguments + 1)
    return found


COMMANDS = _commands()
GROUPS = {name.split()[0] for name in COMMANDS if " " in name}


def faults(text: str) -> list[str]:
    """Return what is typed behind `llmft` and is no command, or has an option that is none.

    A command is typed in backticks, or begins a line of a block of code. Elsewhere words behind
    llmft are a sentence, unless the first is a command that has options behind it.
    """
    blocks = "\n".join(re.findall(r"^```(?!python)\w*\n(.*?)^```", text, re.M | re.S))
    typed = re.findall(r"`llmft ([a-z][^`\n]*)", text)
    typed += re.findall(r"^(?:\$ |srun \S+ )?llmft ([a-z].*)", blocks, re.M)
    return [line for line in typed if not _exists(line, True)] + [
        line
        for line in re.findall(r"\bllmft ([a-z-]+ [^`\n\"']*)", text)
        if not _exists(line, False)
    ]


def _exists(line: str, certain: bool) -> bool:
    line = re.sub(r"<[^>]*>", "NAME", line)
    words = re.split(r"\\|[|;#&>\"']", line)[0].split()
    command = next((c for c in (" ".join(words[:2]), words[0]) if c in COMMANDS), None)
    if command is None:
        return not certain or (len(words) == 1 and words[0] in GROUPS)
    known, most = COMMANDS[command]
    given = words[len(command.split()) :]
    first = next((at for at, word in enumerate(given) if word.startswith("-")), len(given))
    options = {re.split(r"[=,.:)]", word)[0] for word in given if word.startswith("--")}
    return options <= known and (not certain or first <= most)


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_and_option_that_is_named_is_there(name):
    assert faults(TEXTS[name]) == []


def test_every_command_that_a_message_names_is_there():
    assert {name: found for name, text in SOURCES.items() if (found := faults(text))} == {}


def test_every_setting_that_is_named_is_there():
    recipe = {row.key for owner in (Recipe, Stage) for row in fields(owner)}
    registry = Registry.discover()
    own: dict[str, set[str]] = {}
    for block, kind in (("data", "dataset"), ("adapter", "adapter"), ("alignment", "alignment")):
        classes = [registry.method(kind, r.method) for r in registry.records() if r.kind == kind]
        own[block] = {row.key for found in classes for row in fields(found.Config)} | {"method"}
    blocks = "train|evaluate|model|repeat|push_to_hub|data|adapter|alignment"
    setting = re.compile(rf"(?:`|stages\[\]\.| )({blocks})\.(?!jsonl)([a-z]\w*)(?=[`: ])")
    named = 0
    for name, text in TEXTS.items():
        if name == "CONTRIBUTING.md":  # of attributes
            continue
        said = re.sub(r"^```python\n.*?^```|^ *error\[[^\n]*$", "", text, flags=re.M | re.S)
        for block, key in setting.findall(said):
            named += 1
            assert key in own.get(block, ()) or f"{block}.{key}" in recipe, f"{name}: {block}.{key}"
    assert named > 150


def test_every_error_code_that_is_named_is_there():
    for name, text in TEXTS.items():
        assert set(re.findall(r"\bE\d{3}\b", text)) <= set(CODES), name


def test_every_file_of_the_repository_that_is_named_is_there():
    paths = r"`((?:llmft|plugins|tests|benchmarks|recipes|docs)/[\w/.-]+)`"
    for name, text in TEXTS.items():
        for path in re.findall(paths, text):
            # The pages about plugins name the files of the package that they show.
            assert (ROOT / path).exists() or name.startswith("docs/plugins/"), f"{name}: {path}"


def test_the_readme_names_every_method_but_optimisers_and_schedules():
    missing = [
        (record.kind, record.method)
        for record in Registry.discover().records()
        if record.distribution == "llmft" and record.kind not in ("optimizer", "schedule")
        if f"`{record.method}`" not in TEXTS["README.md"]
    ]
    assert missing == []


def test_the_readme_leads_to_every_page_beside_it():
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    nav = yaml.safe_load(text.partition("\nnav:\n")[2].partition("\nnot_in_nav")[0])
    pages = {str(page) for part in nav for page in _leaves(part)}
    ours = sorted(page for page in pages if (ROOT / "docs" / page).is_file() and "/" not in page)
    assert len(ours) > 25
    assert [page for page in ours if f"(docs/{page}" not in TEXTS["README.md"]] == []


def _leaves(tree: object) -> list[object]:
    if isinstance(tree, dict):
        return _leaves(list(tree.values()))
    return [leaf for one in tree for leaf in _leaves(one)] if isinstance(tree, list) else [tree]


def test_both_pages_that_show_the_layers_show_those_that_are_checked():
    config = (ROOT / ".importlinter").read_text("utf-8")
    lines = config.partition("\nlayers =\n")[2].partition("\n\n")[0].splitlines()
    checked = [line.strip() for line in lines]
    block = TEXTS["CONTRIBUTING.md"].partition("\n```text\n")[2].partition("\n```")[0]
    said = [re.split(r"\s{2,}", line)[0] for line in block.splitlines()]
    assert [line for line in said if line] == checked
    table = TEXTS["docs/architecture.md"].partition("\n| layer |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`.*?`) \| ", table, re.M)
    assert [row.replace("`", "").replace("\\|", "|") for row in rows] == checked


@pytest.mark.parametrize("recipe", shipped.recipes(), ids=lambda recipe: recipe.name)
def test_what_list_recipes_shows_of_a_recipe_is_a_whole_sentence(recipe):
    assert recipe.summary.endswith("."), recipe.summary


def test_the_quickstart_lists_every_optional_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - {"test", "docs"}
    table = TEXTS["docs/quickstart.md"].partition("## Optional packages")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?`) \| ", table, re.M)
    assert {name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)} == extras
    named = {name for text in [*TEXTS.values(), *SOURCES.values()] for name in EXTRA.findall(text)}
    assert named - {"NAME"} <= extras
