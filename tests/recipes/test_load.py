"""A recipe as a whole: many mistakes at once, overrides, the round trip, printing, and row R16."""

# Tables of recipes read best with one case on one line.
# ruff: noqa: E501

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import llmft
from llmft.api.errors import Fault, LlmftError, Place
from llmft.cli.commands.render import render_faults
from llmft.cli.error_codes import CODES
from llmft.recipes.load import load_recipe
from tests.recipes.fakes import GOOD, FakeRegistry
from tests.recipes.mutants import mutant

TEN = """\
recipe: 1
name: my run
seed: 17
seed: 18
model:
  model_id: org/model
stages:
  - name: sft
    adapter: {method: lorra, r: 16}
    alignment: {method: sft, lora_r: 3}
    data: {method: jsonl, path: rows.jsonl}
    train:
      lerning_rate: 2e-4
      num_train_epochs: "3"
      packing: yes
      warmup_ratio: 1.5
      lr_scheduler_type: cosin
  - name: ppo
    start_from: stf
    alignment: {method: ppo, reward_model: sft}
    data: {method: jsonl, path: prompts.jsonl, kind: prompt}
"""


def test_many_mistakes_give_as_many_located_errors(faults) -> None:
    found = faults(TEN)
    assert [(fault.code, fault.place.line) for fault in found] == [
        ("E028", 2), ("E006", 4), ("E020", 6), ("E024", 9), ("E020", 10), ("E020", 13), ("E022", 14),
        ("E022", 15), ("E023", 16), ("E025", 17), ("E030", 19), ("E033", 20),
    ]  # fmt: skip
    assert all(fault.place.column and fault.place.source and fault.path for fault in found)


def test_the_resolved_recipe_loads_to_an_equal_one(load) -> None:
    recipe = load(GOOD).recipe
    assert load(json.dumps(recipe.resolved(), indent=2)).recipe == recipe
    assert load(GOOD.split("trackers:")[0]).recipe.trackers[1].method == "jsonl"
    again = load(load(GOOD.split("trackers:")[0]).recipe.model_dump_json()).recipe
    assert again == load(GOOD.split("trackers:")[0]).recipe


def test_a_loaded_recipe_places_later_faults(load) -> None:
    loaded = load(GOOD, ["seed=3"])
    fault = loaded.fault("E900", ("stages", 0, "adapter", "r"), "what")
    assert (fault.place.line, fault.path) == (10, "stages[0].adapter.r")
    assert (loaded.source.text, loaded.source.overrides, loaded.recipe.seed) == (
        GOOD,
        ("seed=3",),
        3,
    )
    assert type(loaded.recipe.stages[0].adapter).__name__ == "LoraConfig"


@pytest.mark.parametrize(
    ("flag", "get"),
    [
        ("stages.sft.train.learning_rate=1e-3", lambda r: r.stages[0].train.learning_rate == 1e-3),
        ("stages[0].train.learning_rate=1e-3", lambda r: r.stages[0].train.learning_rate == 1e-3),
        ("stages.1.train.max_steps=5", lambda r: r.stages[1].train.max_steps == 5),
        ("stages.sft.evaluate.metrics=[loss, f1]", lambda r: r.stages[0].evaluate.metrics == ["loss", "f1"]),
        ("stages.sft.data.path=a=b", lambda r: r.stages[0].data.path == "a=b"),
        ("name='2024'", lambda r: r.name == "2024"),
        ("stages.ppo.adapter={method: lora, r: 16, lora_alpha: 32}", lambda r: r.stages[2].adapter.r == 16),
        ("stages.sft.train.max_steps=null", lambda r: r.stages[0].train.max_steps is None),
        ("trackers.console.method=jsonl", lambda r: r.trackers[0].method == "jsonl"),
    ],
)  # fmt: skip
def test_an_override_is_typed_like_the_file(load, flag: str, get) -> None:
    assert get(load(GOOD, [flag]).recipe)


@pytest.mark.parametrize(
    ("flag", "code", "words"),
    [
        ("stages.sft.train.learning_rate=abc", "E022", "expected a number, got the text 'abc'"),
        ("stages.sft.train.learning_rate=-1e-4", "E023", "got -1e-4"),
        ("stages.sft.train.lerning_rate=1", "E020", "did you mean 'learning_rate'?"),
        ("stages.stf.train.learning_rate=1", "E013", "did you mean 'sft'?"),
        ("stages.7.train.learning_rate=1", "E013", "counted from 0"),
        ("model.path.x=1", "E013", "model.path is not a block"),
        ("stages.sft.trian.lr=1", "E020", "did you mean 'train'?"),
        ("stages=3", "E022", "expected a list"),
        ("seed", "E012", "PATH=VALUE"),
        ("=3", "E012", "PATH=VALUE"),
        ("a..b=3", "E012", "PATH=VALUE"),
        ("seed=[1", "E012", "never closed"),
        ("seed={a: 1, a: 2}", "E012", "written twice"),
        ("seed=!!python/name:os.system x", "E022", "expected a whole number"),
        ("seed=[!!python/name:os.system x]", "E012", "tag"),
        ("seed=\x00", "E012", "NUL"),
        ("seed=\udcff", "E012", "UTF-8"),
        ("name=\u202e", "E028", "U+202E"),
    ],
)
def test_an_override_that_cannot_be_names_the_flag(
    faults, flag: str, code: str, words: str
) -> None:
    found = faults(GOOD, [flag])
    assert [fault.code for fault in found] == [code], found
    assert words in found[0].line()
    assert found[0].place.file.startswith("--set " + flag[:1].replace("\x00", ""))
    assert "\x00" not in found[0].line()


def test_overrides_replace_what_is_wrong_in_the_file(load) -> None:
    text = GOOD.replace("learning_rate: 2e-4", "learning_rate: abc")
    assert (
        load(text, ["stages.sft.train.learning_rate=1"]).recipe.stages[0].train.learning_rate == 1
    )


TAGGED = GOOD.replace("learning_rate: 2e-4", "learning_rate: !!python/name:os.system x")


@pytest.mark.parametrize(
    "flag",
    ["stages.sft.train.learning_rate=1e-3", "stages.sft.train={learning_rate: 1e-3}",
     "stages.0.train.learning_rate=1e-3"],
)  # fmt: skip
def test_an_override_takes_the_faults_of_what_it_replaces_away(load, flag: str) -> None:
    assert load(TAGGED, [flag]).recipe.stages[0].train.learning_rate == 1e-3


def test_an_override_keeps_the_faults_of_what_it_does_not_replace(faults) -> None:
    text = TAGGED.replace("seed:", "sead:")
    found = faults(text, ["stages.sft.train.max_steps=3", "stages.1.name=other"])
    assert "E009" in [fault.code for fault in found]


def test_a_fault_of_the_new_value_is_told_where_the_old_one_had_one(faults) -> None:
    (fault,) = faults(TAGGED, ["stages.sft.train.learning_rate=abc"])
    assert (fault.code, fault.place.file) == ("E022", "--set stages.sft.train.learning_rate=abc")


# --- printing ----------------------------------------------------------------------------------


def test_a_fault_is_printed_with_its_line_and_a_caret() -> None:
    place = Place("r.yaml", 14, 7, "      lerning_rate: 2e-4", 12)
    text = render_faults([Fault("E020", "unknown key", "did you mean x?", "a.b", place)], False, 80)
    assert text.splitlines()[:3] == [
        "error[E020] r.yaml:14:7 a.b: unknown key — fix: did you mean x?",
        " 14 |       lerning_rate: 2e-4",
        "    |       ^~~~~~~~~~~~",
    ]
    assert "`llmft explain E020`" in text


@pytest.mark.parametrize("width", [40, 60, 80])
def test_on_a_terminal_a_message_breaks_between_words_and_a_command_is_left_whole(width):
    command = "llmft run a/recipe.yaml runs/quickstart/20261126-181248-65e0e61c --resume"
    what = "no earlier stage is called 'rewrad', and here are more words than fit on any line"
    faults = [
        Fault("E030", what, "write 'reward', or add a stage before this one that makes it", "a.b"),
        Fault("E130", "stopped by SIGINT", f"continue with: {command}"),
    ]
    text = render_faults(faults, False, width, wrap=True)
    lines = text.splitlines()
    assert command in lines or f"  fix: continue with: {command}" in lines
    assert max(len(line) for line in lines if command not in line) <= max(width, 55)
    joined = " ".join(text.split())
    assert f"error[E030] a.b: {what} fix: write 'reward', or add" in joined
    assert f" — fix: continue with: {command}\n" in render_faults(faults, False, width)


@pytest.mark.parametrize("width", [1, 20, 40, 80])
@pytest.mark.parametrize("column", [1, 300, 990])
def test_a_long_line_is_cut_around_the_caret(width: int, column: int) -> None:
    source = "".join(chr(97 + n % 26) for n in range(1000))
    text = render_faults([Fault("E1", "w", place=Place("f", 3, column, source, 5))], False, width)
    _, line, caret = text.splitlines()[:3]
    assert len(line) <= max(width, 20)
    at = caret.index("^")
    if at < len(line) - 3 and line[at - 3 : at] != "...":
        assert line[at] == source[column - 1]


def test_printing_is_safe_for_odd_characters_and_plain_terminals() -> None:
    place = Place("f", 1, 8, "日本: \x1b[2J\u202e\tx é", 1)
    fault = Fault("E1", "got '\x1b[31m\u200b'", "a\nb", "p", place)
    text = render_faults([fault, fault], False, 80, "ascii")
    text.encode("ascii")
    assert "\x1b" not in text
    assert "<U+001B>" in text
    assert "- fix: a<U+000A>b" in text
    assert "2 faults" in text
    utf = render_faults([fault], True, 80, "utf-8")
    assert utf.count("\x1b[") == 6
    assert "\u202e" not in utf
    assert render_faults([fault], False, 80, "no-such-encoding").isascii()
    assert render_faults([], False, 80) == ""
    wide = render_faults([Fault("E1", "w", place=Place("f", 1, 3, "日本x", 1))], False, 80)
    assert wide.splitlines()[2] == "   |     ^"


# --- the catalogue ---------------------------------------------------------------------------


def _codes_in_source() -> set[str]:
    root = Path(llmft.__file__).parent
    files = [*root.rglob("*.py"), *(root.parent / "plugins").rglob("*.py")]
    # The contract kit raises made-up errors, and the catalogue itself is what is looked at.
    sources = [f for f in files if "testing" not in f.parts and f.name != "error_codes.py"]
    return {code for f in sources for code in re.findall(r'"(E\d{3})"', f.read_text("utf-8"))}


def test_every_code_is_in_the_catalogue() -> None:
    used = _codes_in_source()
    assert sorted(used - CODES.keys()) == []
    assert sorted({code for code in CODES if code < "E090"} - used) == []
    for code, entry in CODES.items():
        assert re.fullmatch(r"E\d{3}", code)
        assert all(entry)
        assert not entry.title[0].isupper()
        assert not entry.title.endswith(".")
        assert entry.meaning.endswith(".")
        assert entry.mend.endswith(".")


# --- speed and weight ------------------------------------------------------------------------


def test_loading_takes_milliseconds(load) -> None:
    load(GOOD)
    times = []
    for _ in range(9):
        start = time.process_time()
        load(GOOD)
        times.append(time.process_time() - start)
    assert min(times) < 0.03


def test_loading_imports_nothing_heavy() -> None:
    program = (
        "import sys, llmft.recipes.recipe, llmft.cli.commands.render, llmft.cli.error_codes;"
        "print([m for m in ('torch', 'transformers', 'peft', 'datasets', 'numpy', 'rapidfuzz')"
        " if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


# --- R16 -----------------------------------------------------------------------------------------


def test_r16_a_mutated_recipe_never_ends_in_a_traceback(tmp_path: Path) -> None:
    count = int(os.environ.get("LLMFT_FUZZ", "400"))
    path = tmp_path / "recipe.yaml"
    loaded = 0
    for seed in range(count):
        text = mutant(random.Random(seed), [GOOD, TEN])
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        start = time.process_time()
        try:
            recipe = load_recipe(path, FakeRegistry()).recipe
        except LlmftError as error:
            for fault in error.faults:
                assert fault.code in CODES, seed
                assert fault.place is not None, seed
                assert fault.place.line or fault.code in ("E002", "E003"), (seed, fault)
                assert "\n" not in fault.line(), (seed, fault)
            render_faults(error.faults, False, 80, "ascii").encode("ascii")
        else:
            loaded += 1
            assert recipe.resolved()
        assert time.process_time() - start < 0.5, seed
    assert loaded
