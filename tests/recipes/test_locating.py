"""A fault that is found outside of the recipe gets its key and place there, or is left as it is."""

from __future__ import annotations

import pytest

from llmft.api.errors import DataError, EnvironmentFault, Fault, LlmftError, Place
from llmft.recipes.load import load_recipe
from llmft.recipes.locating import about, located
from llmft.registry.registry import Registry

RECIPE = """\
recipe: 1
name: two
model: {path: gpt2}
stages:
  - name: first
    adapter: {method: lora}
    alignment: {method: sft}
    data: {method: triviaqa}
  - name: second
    adapter: {method: lora}
    alignment: {method: sft}
    data: {method: jsonl, path: rows.jsonl, limit: 9}
"""
ELSEWHERE = Place("rows.jsonl", 3, 1, "{")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "two.yaml"
    path.write_text(RECIPE)
    return load_recipe(path, Registry.discover())


def found(job, stage: str, *faults: Fault) -> tuple[Fault, ...]:
    with pytest.raises(LlmftError) as caught, located(job, stage):
        raise DataError.of(faults)
    assert isinstance(caught.value, DataError)
    return caught.value.faults


@pytest.mark.parametrize(
    ("stage", "path", "code", "full", "line"),
    [
        ("second", "data.limit", "E101", "stages[1].data.limit", 12),
        ("second", "data.path", "E201", "stages[1].data.path", 12),
        ("first", "model.path", "E201", "model.path", 3),
        ("first", "model.fused", "E206", "model.fused", 3),
    ],
)
def test_a_key_gets_its_place(job, stage, path, code, full, line):
    (fault,) = found(job, stage, Fault(code, "what", "fix", path))
    assert fault.path == full
    assert fault.place.line == line
    assert (fault.code, fault.what, fault.fix) == (code, "what", "fix")


@pytest.mark.parametrize("fault", [
    Fault("E101", "of a file", path="data.path", place=ELSEWHERE),
    Fault("E201", "a place of its own", path="model.path", place=ELSEWHERE),
    Fault("E201", "of no key"),
    Fault("E206", "of no key"),
    Fault("E404", "of a key that is no data's", path="model.path"),
])  # fmt: skip
def test_what_has_a_place_or_no_key_is_left_as_it_is(job, fault):
    error = DataError.of([fault])
    with pytest.raises(DataError) as caught, located(job, "second"):
        raise error
    assert caught.value is error


def test_of_several_faults_each_is_placed_that_can_be(job):
    placed, left = found(job, "second", Fault("E105", "a", path="data.limit"), Fault("E105", "b"))
    assert placed.place.line == 12
    assert left.place is None


@pytest.mark.parametrize(
    ("code", "path", "now"),
    [("E201", "", "model.path"), ("E201", "data.path", "data.path"), ("E404", "", "")],
)
def test_what_cannot_be_had_is_of_the_key_that_is_asked_for(code, path, now):
    error = EnvironmentFault.of([Fault(code, "what", path=path)])
    with pytest.raises(EnvironmentFault) as caught, about("model.path"):
        raise error
    assert caught.value.faults[0].path == now
    assert (caught.value is error) is (path == now)
