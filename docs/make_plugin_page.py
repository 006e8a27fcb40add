"""Writes docs/writing-a-plugin.md: the text here, around the example distribution's own files."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parent
EXAMPLE = DOCS.parent / "tests" / "fixtures" / "llmft_example"

PAGE = """\
# Writing a plugin

A method of your own is a pip-installable package. Nothing in llmft has to be changed, and the
methods that llmft brings along enter by the same door.

There are six kinds, each a class to derive from in `llmft.api`:

| kind | the class says | entry point group |
|---|---|---|
| `Adapter` | what is trained: `attach`, `save`, `load`, `disabled` | `llmft.adapters` |
| `Alignment` | what is optimised: `rows`, `produces`, `train` | `llmft.alignments` |
| `Task` | what is made where nothing is trained: `rows`, `produces`, `run` | `llmft.tasks` |
| `RewardFunction` | a rule that scores an answer: `score` | `llmft.rewards` |
| `Dataset` | how raw records become rows: `records`, `row`, `metrics` | `llmft.datasets` |
| `Tracker` | who is told; `contacts` names the host it talks to, or is `""` | `llmft.trackers` |

A plugin in the group `llmft.plugins` may wrap `llmft_run_stage`, to time, cache or retry a stage;
it acts only in recipes that name it under `plugins:`.

What follows is a complete package, the one that llmft's own tests install, list, train by a recipe
and remove again. Its adapter is made of plain torch modules: it needs no PEFT.

## The package: `pyproject.toml`

The entry point's name is the method's name. llmft reads it from the metadata, and imports the
module only when a recipe names the method.

```toml
{pyproject}```

## The method: `llmft_bottleneck/__init__.py`

```python
{init}```

## What it trains: `llmft_bottleneck/layers.py`

```python
{layers}```

## Its tests

`llmft.testing` is the kit that llmft's own methods are tested with. It attaches, trains, saves,
loads and merges your adapter on tiny models built in memory, and fails where a capability that the
class declares is not there.

```python
{tests}```

Install the package with `pip install .`, and run them with `pytest`. Then:

- `llmft list-plugins` shows the method, or the reason why it cannot be used;
- `llmft show bottleneck` prints its settings;
- a recipe picks it with `adapter: {{method: bottleneck, bottleneck_size: 16}}`, and a typo in
  `bottleneck_size` is answered with the file, the line and the right name.

Plugins are code that you install: llmft cannot fence them in. It imports only those that a recipe
names, refuses a package that takes another's method name, and records each one's version and hash
in the run's `lock.json`.
"""


def page() -> str:
    """Return the page's text."""
    package = EXAMPLE / "src" / "llmft_bottleneck"
    return PAGE.format(
        pyproject=(EXAMPLE / "pyproject.toml").read_text("utf-8"),
        init=(package / "__init__.py").read_text("utf-8"),
        layers=(package / "layers.py").read_text("utf-8"),
        tests=(EXAMPLE / "tests" / "test_bottleneck.py").read_text("utf-8"),
    )


if __name__ == "__main__":
    (DOCS / "writing-a-plugin.md").write_text(page(), "utf-8")
