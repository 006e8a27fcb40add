"""The program that changes the source: what it changes, which tests it asks, what it counts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks" / "mutants"
NAMES = ("areas", "children", "equivalent", "mutate", "page", "run")


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(PROGRAM))
    yield
    for name in NAMES:
        if Path(getattr(sys.modules.get(name), "__file__", None) or "/").parent == PROGRAM:
            del sys.modules[name]


def changed(tmp_path, source: str) -> list[str]:
    """Return the diffs of all mutants of a source."""
    import mutate

    path = tmp_path / "module.py"
    path.write_text(source)
    return [one.diff(path.read_bytes()) for one in mutate.mutants(tmp_path, "module.py")]


@pytest.mark.parametrize(
    ("line", "mutants"),
    [
        ("x = a < b", ["x = a <= b", "x = a > b"]),
        ("x = a is not b", ["x = a is b"]),
        ("x = a + b * c", ["x = a + b / c", "x = a - b * c"]),
        ("x = not a", ["x = a"]),
        ("x = -a", ["x = a"]),
        ("x = a and b", ["x = a", "x = a or b", "x = b"]),
        ("x = min(a, b)", ["x = max(a, b)"]),
        ("x = math.ceil(a)", ["x = math.floor(a)"]),
        ("x = True", ["x = False"]),
        ("x = 7", ["x = 8"]),
        ("x = 0.5", ["x = 1.0"]),
        ("x = a if b else c", ["x = a if not b else c"]),
        ("x += a", ["pass", "x -= a"]),
        ("a(b)", ["pass"]),
        ("raise a", ["pass"]),
    ],
)
def test_each_kind_of_slip(line, mutants, tmp_path):
    found = [diff.splitlines()[1].removeprefix("+ ") for diff in changed(tmp_path, line + "\n")]
    assert sorted(found) == sorted(mutants)


@pytest.mark.parametrize(
    "line",
    [
        '"""A docstring with 7."""', "import a", "x: list[7]", "log.info(7)", "x = f'{a + 7}'",
        "x = 'a' + b", "x = folder / 'a' / b", "@a(7)\ndef f(): ...", "def f(a: b[7]): ...",
        "for a in zip(b, c, strict=True): ...", "if TYPE_CHECKING:\n    x = 7",
    ],
)  # fmt: skip
def test_what_no_test_could_notice_is_left_as_it_is(line, tmp_path):
    assert changed(tmp_path, line + "\n") == []


def test_a_change_is_made_where_it_is_told_and_nowhere_else(tmp_path):
    import mutate

    text = "é = a < b  # ü\ny = (a <\n     b)\n"
    path = tmp_path / "module.py"
    path.write_text(text, "utf-8")
    first, _, third, _ = mutate.mutants(tmp_path, "module.py")
    assert first.source(path.read_bytes()).decode() == text.replace("a < b  ", "a <= b  ")
    assert (third.line, third.source(path.read_bytes()).decode().splitlines()[1]) == (
        2, "y = (a <= b)"
    )  # fmt: skip


def test_every_file_of_an_area_is_there_and_has_tests_near_it():
    from areas import AREAS, FARTHER, files_of, tests_of

    for area in AREAS:
        assert files_of(ROOT, area)
        for file in files_of(ROOT, area):
            if (ROOT / file).stat().st_size > 200:
                assert tests_of(ROOT, file), file
    for file, tests in FARTHER.items():
        assert (ROOT / file).is_file(), file
        for test in tests:
            assert (ROOT / test).is_file(), test


@pytest.mark.parametrize(
    ("file", "nearest"),
    [
        ("llmft/training/loop.py", "tests/training/test_loop.py"),
        ("plugins/llmft_alignments/ppo/maths.py", "tests/plugins/alignments/ppo/test_maths.py"),
        ("plugins/llmft_alignments/dpo/__init__.py", "tests/plugins/alignments/dpo/test_dpo.py"),
    ],
)
def test_the_nearest_test_bears_the_files_name(file, nearest):
    from areas import tests_of

    assert tests_of(ROOT, file)[0] == nearest


def test_a_sample_follows_from_its_seed_and_has_as_much_of_each_area():
    from areas import AREAS
    from run import sample

    drawn = [sample(ROOT, 20, seed, [*AREAS], None) for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    areas = [area for area, _ in drawn[0]]
    assert {area: areas.count(area) for area in AREAS} == dict.fromkeys(AREAS, 4)


def test_every_equivalent_mutant_is_still_one_of_the_code():
    from equivalent import EQUIVALENT
    from mutate import mutants

    for file, diff in EQUIVALENT:
        before = (ROOT / file).read_bytes()
        assert diff in [one.diff(before) for one in mutants(ROOT, file)], (file, diff)


def test_the_score_counts_equivalent_mutants_as_neither():
    from page import Outcome, as_page, as_text, score

    def outcome(killed: bool, reason: str = "") -> Outcome:
        return Outcome("saving", "a.py", 3, "another constant", "- 1\n+ 2", killed, "", reason)

    some = [outcome(True)] * 8 + [outcome(False), outcome(False, "it is only a limit")]
    assert score(some) == "8 of 10 killed (80.0%); 1 equivalent; 88.9% of the others"
    page = as_page(some, 3, 1.2, {"saving": 1234})
    assert "| saving | 1,234 | 10 | 8 | 1 | 89% |" in page
    assert page.index("## Survivors") < page.index("`a.py:3`") < page.index("## Equivalent")
    assert "it is only a limit" in page
    assert as_text(some).count("a.py:3") == 2
