"""The program that changes the source: what it changes, which tests it asks, what it counts."""

from __future__ import annotations

import os
import shutil
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
    page = as_page(some, 3, {"saving": 1234})
    assert "| saving | 1,234 | 10 | 8 | 1 | 89% |" in page
    assert page.index("## Survivors") < page.index("`a.py:3`") < page.index("## Equivalent")
    assert "it is only a limit" in page
    assert as_text(some).count("a.py:3") == 2


def test_the_page_tells_what_a_plain_run_of_the_tests_would_notice():
    from page import Outcome, as_page

    def outcome(by: str, extended: bool = False, file: str = "a.py") -> Outcome:
        return Outcome("saving", file, 3, "", "- 1\n+ 2", bool(by), by, "", extended)

    some = [outcome("t.py::a")] * 3 + [outcome("t.py::b", extended=True), outcome("time")]
    page = as_page(some, 3, {"saving": 9}, (7, [outcome("", file="b.py")]), "Drawn elsewhere.")
    told = " ".join(page.split())
    assert "a plain `pytest` notices 3, cases that only `pytest --extended` has" in told
    assert "notice 1, and in 1 a test does not end in time" in told
    assert "1 drawn by seed 7, no test was written for a survivor: **0 of 1 killed" in told
    assert page.index("Drawn elsewhere.") < page.index("| area |")
    assert page.index("## Survivors of the fresh sample") < page.index("b.py:3")


def test_a_case_that_only_an_extended_run_has_is_tried_after_the_plain_ones(tmp_path):
    """The plain case lets the change pass, and the kill says that it was the other one."""
    import json
    import subprocess

    for folder in ("llmft", "plugins", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "llmft/code.py").write_text("x = 1\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = extended\n")
    shutil.copy(ROOT / "tests/conftest.py", tmp_path / "conftest.py")
    (tmp_path / "tests/test_code.py").write_text(
        "import pytest\nfrom pathlib import Path\n"
        "def test_plain(): pass\n"
        "@pytest.mark.extended\n"
        "def test_more(): assert 'x = 1' in Path('llmft/code.py').read_text()\n"
        "@pytest.mark.slow\n@pytest.mark.extended\ndef test_slow(): assert False\n"
    )
    program = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from children import Copy, Job, run_all\n"
        "from mutate import Mutant\n"
        "from page import Outcome\n"
        "mutant = Mutant('llmft/code.py', 1, '', 4, 5, '2')\n"
        "before = Path('llmft/code.py').read_bytes()\n"
        "jobs = [Job(mutant.file, source, ['tests/test_code.py'], 60.0)\n"
        "        for source in (mutant.source(before), before)]\n"
        "run_all(jobs, [Copy(Path.cwd())], lambda job: None)\n"
        "found = [Outcome.of('', mutant, before, job) for job in jobs]\n"
        "print(json.dumps([[one.killed, one.extended, one.by] for one in found]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(PROGRAM)], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    changed, unchanged = json.loads(done.stdout)
    assert changed == [True, True, "tests/test_code.py::test_more"]
    assert unchanged == [False, False, ""]


def test_of_several_outcomes_of_a_mutant_the_last_one_counts(tmp_path):
    import json

    from page import Outcome
    from run import noted, sample

    chosen = sample(ROOT, 5, 3, ["saving"], ["runs/locking"])
    lines = []
    for killed in (False, True):
        for area, one in chosen[:4]:
            diff = one.diff((ROOT / one.file).read_bytes())
            outcome = Outcome(area, one.file, one.line, one.what, diff, killed, "", "")
            lines.append({k: v for k, v in vars(outcome).items() if k != "extended"})
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = noted(path, chosen)
    assert list(found) == [mutant for _, mutant in chosen[:4]]
    assert all(one.killed for one in found.values())
