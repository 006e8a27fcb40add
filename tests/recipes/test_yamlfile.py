"""Rows R1-R3, R6-R8: what is read from YAML, and what is refused."""

# Tables of recipes read best with one case on one line.
# ruff: noqa: E501

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmft.api.errors import LlmftError, RecipeError
from llmft.recipes.load import load_recipe
from llmft.recipes.scalar import scalar
from llmft.recipes.yamlfile import MAX_DEPTH, MAX_FAULTS, MAX_NODES, parse
from tests.recipes.fakes import GOOD, FakeRegistry


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4), ("1e-5", 1e-5), (".0002", 0.0002), ("1.", 1.0), ("1E+3", 1000.0),
        ("-.5", -0.5), ("+12", 12), ("0x1F", 31), ("0o17", 15), ("017", 17), ("0", 0),
        ("-.inf", -float("inf")), ("~", None), ("null", None), ("", None), ("True", True),
        ("no", "no"), ("on", "on"), ("yes", "yes"), ("off", "off"), ("y", "y"), ("N", "N"),
        ("1_000", "1_000"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("1e", "1e"),
        ("tRUE", "tRUE"), (".", "."), ("0b1", "0b1"), ("9" * 401, "9" * 401),
    ],
)  # fmt: skip
def test_r1_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_r1_every_float_survives_the_round_trip(value: float) -> None:
    assert scalar(str(value)) == value


@given(st.integers())
def test_r1_every_integer_survives_the_round_trip(value: int) -> None:
    assert scalar(str(value)) == value


def test_r1_a_learning_rate_with_an_exponent_is_a_number(load) -> None:
    assert load(GOOD).recipe.stages[0].train.learning_rate == 2e-4


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "y", "n", "No", "YES"])
def test_r2_words_are_no_booleans(faults, word: str) -> None:
    (fault,) = faults(GOOD.replace("num_train_epochs: 1", f"packing: {word}"))
    assert fault.code == "E022"
    assert word in fault.what
    assert fault.fix == "write true or false"


def test_r2_a_word_is_text_where_text_is_wanted(load) -> None:
    assert load(GOOD.replace("split: train", "split: no")).recipe.stages[0].data.split == "no"


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("seed: 17", "seed: 17\nseed: 18", (3, 4)),
        (
            "      learning_rate: 2e-4",
            "      learning_rate: 2e-4\n      learning_rate: 1",
            (15, 16),
        ),
        ("r: 16", "r: 16, r: 8", (10, 10)),
        ("  - name: reward", "  - name: reward\n    name: x", (18, 19)),
    ],
)
def test_r3_a_duplicate_key_names_both_lines(faults, old: str, new: str, lines) -> None:
    (fault,) = faults(GOOD.replace(old, new))
    assert fault.code == "E006"
    assert fault.place.line == lines[1]
    assert f"line {lines[0]} " in fault.what
    assert fault.what.endswith(f"line {lines[1]}")


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {canary}']",
        "!!python/name:os.system ''",
        "!include /etc/passwd",
        "!!str 3",
        "! x",
        "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {canary}']",
        "!e!x y",
    ],
)
def test_r6_a_tag_is_refused_before_anything_is_built(faults, tmp_path, value: str) -> None:
    canary = tmp_path / "canary"
    (fault,) = faults(GOOD.replace("seed: 17", "seed: " + value.format(canary=canary)))
    assert (fault.code, fault.place.line, fault.place.column) == ("E009", 3, 7)
    assert not canary.exists()


BOMBS = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    "flow depth": "a: " + "[" * 100_000,
    "block depth": "".join(" " * i + "a:\n" for i in range(200)),
    "many keys": "".join(f"k{i}: 1\n" for i in range(100_000)),
    "many items": "a: [" + "1," * 400_000,
    "too large": "a: '" + "x" * (1 << 20) + "'",
    "lines": "# x\n" * 100_000,
    "long tag": "a: !" + "a" * 1_000_000 + " 1",
    "long quote": 'a: "' + "x\n " * 300_000 + '"',
    "long plain": "a: [x" + "\nx" * 400_000,
    "escapes": 'a: "' + "\\x41" * 200_000 + '"',
    "question marks": "? " * 400_000,
    "dashes": "- " * 400_000,
    "documents": "---\n" * 200_000,
    "million keys": "{" + "a," * 500_000,
    "deep aliases": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 90)),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_r7_a_bomb_is_refused(faults, name: str) -> None:
    (fault, *_) = faults(BOMBS[name])
    assert fault.code in ("E002", "E010", "E009"), fault.line()


def test_r7_the_deepest_block_is_counted_with_the_files_own_and_the_innermost_value() -> None:
    deepest = MAX_DEPTH - 2
    parse("a: " + "[" * deepest + "1" + "]" * deepest, "r.yaml")
    with pytest.raises(RecipeError, match="inside each other") as caught:
        parse("a: " + "[" * (deepest + 1) + "1" + "]" * (deepest + 1), "r.yaml")
    assert caught.value.faults[0].code == "E002"


def test_r7_so_many_values_are_read_and_one_more_is_not() -> None:
    """The block, its key and the list are three of them."""
    items = MAX_NODES - 3
    assert len(parse(f"a: [{'1,' * items}]", "r.yaml").data["a"]) == items
    with pytest.raises(RecipeError, match=r"E002.*more than 10,000 values"):
        parse(f"a: [{'1,' * (items + 1)}]", "r.yaml")


def test_r7_of_very_many_faults_the_first_are_told() -> None:
    with pytest.raises(RecipeError) as caught:
        parse("a:\n" + "- !x 1\n" * (MAX_FAULTS + 50), "r.yaml")
    codes = [fault.code for fault in caught.value.faults]
    assert codes == ["E009"] * MAX_FAULTS + ["E002"]
    assert caught.value.faults[-1].what == "100 faults so far; the rest is not checked"
    few = parse("a:\n" + "- !x 1\n" * (MAX_FAULTS - 1), "r.yaml")
    assert len(few.faults) == MAX_FAULTS - 1


def test_r7_bombs_take_little_time_and_memory(tmp_path: Path) -> None:
    """All of them in one process of limited memory: that also shows that none leaves much behind."""
    for number, text in enumerate(BOMBS.values()):
        (tmp_path / f"{number}.yaml").write_text(text)
    program = textwrap.dedent("""
        import resource, sys, time
        from tests.recipes.fakes import FakeRegistry
        from llmft.api.errors import LlmftError
        from llmft.recipes.load import load_recipe
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in sys.argv[1:]:
            start = time.process_time()
            try:
                load_recipe(path, FakeRegistry())
            except LlmftError:
                pass
            assert time.process_time() - start < 0.5, (path, time.process_time() - start)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 200_000, grown
    """)
    paths = [str(tmp_path / f"{number}.yaml") for number in range(len(BOMBS))]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}"}
    limit = 1 << 30

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", program, *paths], env=environment, preexec_fn=limited,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "a: &a\n  b:\n    - *a", "a: *b"])
def test_r7_a_cycle_or_an_unknown_alias_is_refused(faults, text: str) -> None:
    assert [fault.place.line for fault in faults(text) if fault.code == "E007"]


def test_r7_a_plain_alias_is_fine(load) -> None:
    text = GOOD.replace("alignment: {method: sft}", "alignment: &a {method: sft}")
    extra = "  - {name: again, start_from: sft, alignment: *a, data: {method: jsonl, path: x}}\n"
    assert load(text.replace("trackers:", extra + "trackers:")).recipe.stages[-1].name == "again"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "E010"), (b"# only\n", "E010"), (b"---\n", "E010"), (b"- a\n- b\n", "E010"),
        (b"just text", "E010"), (b"a: 1\n---\nb: 2\n", "E010"), (b"a: 1\n...\nb: 2\n", "E010"),
        (b"a: \x00\n", "E003"), (b"a: \x1b[31m\n", "E003"), (b"a: \xff\n", "E003"),
        ("a: 1".encode("utf-16"), "E003"), (b"a:\n\tb: 1\n", "E004"), (b"a:\t1\n", "E004"),
        (b"a: [1\n", "E005"), (b'a: "x\n', "E005"), (b"a: b: c\n", "E005"), (b"a: @x\n", "E005"),
        (b"a: \"\\U99999999\"\n", "E005"), (b"%YAML 1.1\n---\na: 1\n", "E005"),
        (b"<<: {a: 1}\n", "E008"), (b"? [a]\n: 1\n", "E011"), (b": 1\n", "E011"),
    ],
)  # fmt: skip
def test_r8_what_is_no_recipe_is_named(faults, text: bytes, code: str) -> None:
    found = faults(text)
    assert code in [fault.code for fault in found]
    assert all(fault.place for fault in found)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('a: 1\nb: "x\nc: 2\n', 2, "this quote is never closed"),
        ("a: 1\nb: 'x\nc: 2\n", 2, "this quote is never closed"),
        ('a: 1\nb: "x\n---\nc: 2"\n', 3, "found unexpected document separator"),
    ],
)
def test_r8_what_is_wrong_inside_a_quote_is_told(text: str, line: int, what: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(text, "r.yaml")
    (fault,) = caught.value.faults
    assert (fault.code, fault.place.line, fault.what) == ("E005", line, what)


def test_r8_a_surrogate_pair_is_the_character_that_json_means_by_it() -> None:
    whole = {"name": "🙂", "list": ["a𝄞b"], "🙂": 1}
    assert parse(json.dumps(whole), "recipe.json").data == whole
    (fault,) = parse('{"name": "\\ud83d"}', "recipe.json").faults
    assert "half of a surrogate pair" in fault.what


def test_r8_a_merge_key_in_quotes_is_a_key_like_any_other(faults) -> None:
    assert [fault.code for fault in faults(GOOD + "<<: {seed: 3}\n")] == ["E008"]
    (fault,) = faults(GOOD + "'<<': {seed: 3}\n")
    assert (fault.code, fault.path) == ("E020", "<<")


def test_r8_bad_utf8_names_line_and_byte(faults) -> None:
    (fault,) = faults(b"a: 1\nb: x\xe9\n")
    assert "byte 9 (0xe9)" in fault.what
    assert (fault.place.line, fault.place.column) == (2, 5)


def test_r8_a_byte_order_mark_is_accepted(load) -> None:
    assert load(b"\xef\xbb\xbf" + GOOD.encode()).recipe.name == "rlhf-trivia"


def test_r8_line_ends_of_windows_are_accepted(faults) -> None:
    assert not faults(GOOD.replace("\n", "\r\n"))
    (fault,) = faults(GOOD.replace("seed: 17", "sed: 17").replace("\n", "\r\n"))
    assert (fault.place.line, fault.place.source) == (3, "sed: 17")


def test_r15_only_a_plain_file_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    for path, word in [
        (pipe, "a pipe"), ("/dev/zero", "a device"), (tmp_path, "a folder"),
        (tmp_path / "pip.yaml", "no such file"), ("a\0b", "cannot be read"),
        (pipe / "x", "cannot be read"), (tmp_path / ("x" * 300), "cannot be read"),
    ]:  # fmt: skip
        with pytest.raises(RecipeError) as caught:
            load_recipe(path, FakeRegistry())
        assert caught.value.faults[0].code == "E001"
        assert word in caught.value.faults[0].what
        assert caught.value.exit_code == 2


def test_a_missing_file_gets_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "quikstart.yaml", FakeRegistry())
    assert "quickstart.yaml" in caught.value.faults[0].fix


def test_places_count_from_one_and_cover_keys_and_values() -> None:
    tree = parse("a: 1\nb:\n  - c: 'x y'\n    dé: [1, 20]\n", "f")
    assert (tree.keys[("b", 0, "c")].line, tree.keys[("b", 0, "c")].column) == (3, 5)
    place = tree.values[("b", 0, "c")]
    assert (place.line, place.column, place.width, place.source) == (3, 8, 5, "  - c: 'x y'")
    place = tree.values[("b", 0, "dé", 1)]
    assert (place.line, place.column, place.width) == (4, 13, 2)


@settings(max_examples=200)
@given(st.text(max_size=60))
def test_any_text_is_a_tree_or_a_recipe_error(text: str) -> None:
    try:
        parse(text, "f")
    except LlmftError as error:
        assert error.faults[-1].place  # noqa: PT017 - most texts are no error
