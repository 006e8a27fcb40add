"""What a plan says to change where a memory is too small: only what helps, until it fits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llmft.planning import fitting
from llmft.planning.fitting import GIB, Memory, changes, named_memory

ROOM = 100


def suggested(monkeypatch, before: int, *ideas: tuple[str, int]) -> list[tuple[str, int, bool]]:
    """Return what is said where each idea, with those before it that stay, has such a peak."""
    peak = SimpleNamespace(total=before)
    stage = SimpleNamespace(name="only", applied=())
    recipe = SimpleNamespace(stage=lambda name: stage)
    job = SimpleNamespace(
        with_stage=lambda recipe, stage: SimpleNamespace(stage=lambda name: stage)
    )
    stages = (SimpleNamespace(name="only", peak=peak),)
    plan = SimpleNamespace(recipe=recipe, job=job, base="the base", stages=stages)

    def apply(name: str):
        return lambda recipe, stage: (
            recipe, SimpleNamespace(name="only", applied=(*stage.applied, name))
        )  # fmt: skip

    peaks = dict(ideas)
    seen = []

    def plan_stage(job, stage, base, *, in_ram):
        assert (base, in_ram) == ("the base", False)
        seen.append(stage.applied)
        return SimpleNamespace(peak=SimpleNamespace(total=peaks[stage.applied[-1]]))

    monkeypatch.setattr(fitting, "_ideas", lambda *args: ((name, apply(name)) for name in peaks))
    monkeypatch.setattr(fitting, "plan_stage", plan_stage)
    found = changes(plan, Memory("a GPU", ROOM + 20, 20, False))
    kept = tuple(change.setting for change in found)
    assert seen[-1] == kept or seen[-1][:-1] == kept, "what does not help is not built upon"
    return [(change.setting, change.peak, change.fits) for change in found]


def test_a_suggestion_that_does_not_lower_the_peak_is_not_made(monkeypatch):
    made = suggested(monkeypatch, 200, ("a", 150), ("b", 150), ("c", 170), ("d", 90), ("e", 10))
    assert made == [("a", 150, False), ("d", 90, True)]


@pytest.mark.parametrize("first", [200, 220])
def test_neither_is_the_first_one(first, monkeypatch):
    assert suggested(monkeypatch, 200, ("a", first), ("b", 100)) == [("b", 100, True)]


def test_where_nothing_is_enough_all_that_helps_is_said(monkeypatch):
    assert suggested(monkeypatch, 200, ("a", 199), ("b", 101)) == [
        ("a", 199, False), ("b", 101, False)
    ]  # fmt: skip


@pytest.mark.parametrize(("peak", "tight"), [(100, False), (101, True)])
def test_a_stage_that_just_fits_needs_no_change(peak, tight, monkeypatch):
    monkeypatch.setattr(fitting, "_ideas", lambda *args: iter(()))
    monkeypatch.setattr(fitting, "plan_stage", None)
    asked = []
    stages = (SimpleNamespace(name="s", peak=SimpleNamespace(total=peak)),)
    recipe = SimpleNamespace(stage=asked.append)
    plan = SimpleNamespace(recipe=recipe, stages=stages, job=None, base=None)
    assert changes(plan, Memory("m", 120, 20, True)) == []
    assert asked == ["s"] * tight


@pytest.mark.parametrize(
    ("text", "size"),
    [("24", 24 * GIB), ("1.5g", 1.5 * GIB), ("800MB", 800 * 2**20), ("2 GiB", 2 * GIB),
     ("900m", 900 * 2**20)],
)  # fmt: skip
def test_a_size_is_of_two_to_the_thirtieth(text, size):
    memory = named_memory(text)
    assert memory.total == size
    assert memory.room == size - 600 * 2**20
    assert not memory.in_ram
