"""Which checkpoint is taken, which are kept, and what is refused; without a run around them."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from functools import partial

import pytest
import torch

from llmft.api import Schedule, ScheduleConfig, TrainingSpan
from llmft.api.errors import CheckpointError, EnvironmentFault, StageError
from llmft.api.train_settings import TrainSettings
from llmft.training import checkpoints as module
from llmft.training import training_state
from llmft.training.checkpoints import Checkpoints, check_space, newest_carried
from llmft.training.learning_rates import LearningRates
from llmft.training.optimizer import make_optimizer
from tests.end_to_end.checkpoints.damages import DAMAGES, flip

IDENTITY = {"train rows": "abc", "number of items": 3}


def store(folder, run_id="run-1", notes=None, **identity) -> Checkpoints:
    note = notes.append if notes is not None else lambda text: None
    return Checkpoints(folder, run_id, {**IDENTITY, **identity}, note=note)


def save(kept: Checkpoints, step: int) -> None:
    kept.save(step, {"model/w": torch.arange(300.0) + step}, {"rng": {}, "step": step})


@pytest.fixture
def two(tmp_path):
    """A store with checkpoints of the steps 5 and 10."""
    kept = store(tmp_path / "checkpoints")
    save(kept, 5)
    save(kept, 10)
    return kept


CASES = [pytest.param(damage, id=what) for what, damage in DAMAGES.items()]


def test_c1_there_are_29_cases_of_damage():
    assert len(CASES) == 29


@pytest.mark.parametrize("damage", CASES)
def test_c1_c2_a_damaged_checkpoint_is_skipped_and_the_one_before_is_taken(two, damage):
    damage(two.folder / "step-10")
    notes: list[str] = []
    saved = store(two.folder, notes=notes).newest()
    assert saved.step == 5
    assert saved.tensors["model/w"][0] == 5
    assert len(notes) == 1
    assert "step-10 is skipped" in notes[0]


def test_c3_where_all_are_damaged_it_refuses(two):
    for step in (5, 10):
        flip(0.7)(two.folder / f"step-{step}" / "state.safetensors")
    with pytest.raises(CheckpointError, match=r"E403.*none of 2 checkpoints"):
        store(two.folder).newest()


def test_c1_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(two):
    flip(0.5)(two.folder / "step-10" / "state.safetensors")
    save(two, 10)
    assert store(two.folder).newest().step == 10


def test_c4_a_checkpoint_of_another_run_is_refused(two):
    with pytest.raises(CheckpointError, match=r"E405.*of the run 'run-1', not of 'run-2'"):
        store(two.folder, run_id="run-2").newest()


def test_d13_other_rows_are_refused_by_name(two):
    with pytest.raises(CheckpointError, match=r"E405.*train rows of the stage has changed"):
        store(two.folder, **{"train rows": "xyz"}).newest()


def test_c2_a_checkpoint_under_a_wrong_name_is_skipped(two):
    (two.folder / "step-10").rename(two.folder / "step-12")
    assert store(two.folder).newest().step == 5


def test_o6_order_is_by_step_and_not_by_time(two):
    save(two, 100)
    os.utime(two.folder / "step-100", (1, 1))
    os.utime(two.folder / "step-10", (4e9, 4e9))
    assert store(two.folder).newest().step == 100


@pytest.mark.parametrize("which", ["newest", "best_saved"])
def test_other_processes_read_a_checkpoints_tensors_themselves(two, tmp_path, monkeypatch, which):
    """As many bytes as a model trained in full and its states have are not sent to each of them."""
    two.best = 5
    sent = []

    def first(make):
        sent.append(pickle.dumps(make()))
        return pickle.loads(sent[0])

    monkeypatch.setattr(module.distributed, "on_rank_zero", first)
    here = two.in_all(getattr(two, which))
    assert len(sent[0]) < 500  # of 300 numbers there are 1,200 bytes
    monkeypatch.setattr(module.distributed, "on_rank_zero", lambda make: pickle.loads(sent[0]))
    elsewhere = store(tmp_path / "a folder of its own")
    there = elsewhere.in_all(lambda: pytest.fail("the first one alone reads"))
    assert (there.step, there.facts) == (here.step, here.facts)
    assert torch.equal(there.tensors["model/w"], here.tensors["model/w"])
    assert there.tensors["model/w"][0] == here.step == (10 if which == "newest" else 5)


def test_a_process_that_cannot_see_the_folder_says_so(two, tmp_path, monkeypatch):
    told = module.Saved(10, {}, {}, {}), tmp_path / "of another machine"
    monkeypatch.setattr(module.distributed, "on_rank_zero", lambda make: told)
    with pytest.raises(CheckpointError, match="cannot be read in process 0"):
        two.in_all(lambda: pytest.fail("the first one alone reads"))


def test_without_a_checkpoint_all_processes_have_none(tmp_path):
    kept = store(tmp_path / "none")
    assert kept.in_all(kept.newest) is None


def test_the_newest_are_kept_and_what_was_half_written_is_swept(two):
    save(two, 15)
    assert two.steps() == [15, 10]
    (two.folder / ".staging-step-20-x").mkdir()
    (two.folder / "notes.txt").write_text("a user's own")
    assert store(two.folder).newest().step == 15
    assert sorted(p.name for p in two.folder.iterdir()) == ["notes.txt", "step-10", "step-15"]


def test_a_damaged_one_does_not_count_as_one_that_is_kept(two):
    flip(0.5)(two.folder / "step-10" / "state.json")
    save(two, 7)
    assert two.steps() == [10, 7, 5]
    save(two, 8)
    assert two.steps() == [10, 8, 7]
    assert store(two.folder).newest().step == 8


def test_t10_what_a_kill_kept_from_being_taken_away_goes_at_the_next_start(two):
    shutil.copytree(two.folder / "step-5", two.folder / "step-1")
    assert store(two.folder).newest().step == 10
    assert two.steps() == [10, 5]


def test_s3_no_pickle_is_written(two):
    for path in two.folder.rglob("*"):
        if path.is_file():
            assert path.suffix in (".json", ".safetensors")


def test_t12_a_disk_too_small_is_told_before_training(tmp_path, monkeypatch):
    real = os.statvfs

    def small(path):
        found = list(real(path))
        found[1], found[4] = 1, 5_000_000  # fragment size, free blocks
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", small)
    check_space(tmp_path, 1_000_000, 3)
    with pytest.raises(EnvironmentFault, match=r"needs 6\.0 MB \(3 checkpoints of 2\.0 MB\).*5\.0"):
        check_space(tmp_path, 2_000_000, 3)


class Falling(Schedule):
    def factor(self, step, span):
        return 0.9**step


def falling(optimizer) -> LearningRates:
    return LearningRates(optimizer, Falling(ScheduleConfig(method="f")), TrainingSpan(9, 0, 0.1))


def tiny(width: int = 4, dtype=torch.float32, names=("a",)):
    made = torch.nn.ModuleDict({name: torch.nn.Linear(width, 2, dtype=dtype) for name in names})
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.1)
    return made, optimizer, falling(optimizer)


def test_t2_weights_that_are_not_finite_are_never_published():
    model, optimizer, _ = tiny()
    with torch.no_grad():
        model["a"].weight[0, 0] = torch.inf
    with pytest.raises(StageError, match=r"'a\.weight' is not finite; nothing saved"):
        training_state.capture(model, optimizer)


@pytest.mark.parametrize(("other", "what"), [
    (tiny(width=5), r"'a.weight' is float32 \[2, 4\], not float32 \[2, 5\]"),
    (tiny(dtype=torch.bfloat16), "is float32 .*not bfloat16"),
    (tiny(names=("a", "b")), "'b.(weight|bias)' is missing"),
    (tiny(names=("b",)), "'b.(weight|bias)' is missing.*unexpected"),
])  # fmt: skip
def test_c7_names_shapes_and_dtypes_are_strict(other, what):
    model, optimizer, _ = tiny()
    tensors, facts = training_state.capture(model, optimizer)
    with pytest.raises(CheckpointError, match=what):
        training_state.restore(*other, 3, tensors, facts)


def made_as_named(optim: str, parameters):
    return make_optimizer([{"params": list(parameters)}], TrainSettings(optim=optim))


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.AdamW(p, lr=0.1),
    lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    lambda p: torch.optim.SGD(p, lr=0.1),
    lambda p: __import__("bitsandbytes").optim.AdamW8bit(p, lr=0.1, min_8bit_size=1),
    lambda p: __import__("bitsandbytes").optim.PagedAdamW8bit(p, lr=0.1, min_8bit_size=1),
    lambda p: __import__("bitsandbytes").optim.PagedAdamW32bit(p, lr=0.1),
    *(partial(made_as_named, optim) for optim in (
        "adafactor", "adagrad", "rmsprop", "lion_32bit", "lion_8bit", "paged_lion_32bit",
        "paged_lion_8bit", "muon")),
], ids=["adamw", "fused", "sgd", "8bit", "paged 8bit", "paged 32bit", "adafactor", "adagrad",
        "rmsprop", "lion 32bit", "lion 8bit", "paged lion 32bit", "paged lion 8bit",
        "muon"])  # fmt: skip
def test_c7_every_optimiser_goes_on_to_the_bit(tmp_path, make):
    def fresh():
        torch.manual_seed(1)
        model = torch.nn.Linear(64, 64, bias=False)
        optimizer = make(model.parameters())
        return model, optimizer, falling(optimizer)

    def steps(model, optimizer, schedule, count):
        for _ in range(count):
            x = torch.randn(8, 64)
            model(torch.dropout(x, 0.3, True)).square().mean().backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    whole = fresh()
    steps(*whole, 3)
    kept = store(tmp_path / "c")
    kept.save(3, *training_state.capture(*whole[:2]))
    steps(*whole, 3)
    resumed = fresh()
    saved = kept.newest()
    training_state.restore(*resumed, 3, saved.tensors, saved.facts)
    steps(*resumed, 3)
    assert torch.equal(whole[0].weight, resumed[0].weight)
    assert whole[2].get_last_lr() == resumed[2].get_last_lr()


def test_the_generators_of_python_numpy_and_torch_go_on():
    import numpy

    def draw():
        return random.random(), random.gauss(0, 1), numpy.random.randn(), float(torch.rand(()))

    draw()
    tensors, facts = training_state.random_state()
    facts = json.loads(json.dumps(facts))
    expected = draw()
    draw()
    training_state.set_random_state(tensors, facts)
    assert draw() == expected


def test_a_checkpoint_has_no_file_that_is_not_listed(two):
    assert {p.name for p in (two.folder / "step-10").iterdir()} == {
        module.STATE, module.TENSORS, "manifest.json",
    }  # fmt: skip


def test_what_the_newest_readable_checkpoint_carries_is_told(two):
    folder = two.folder
    assert newest_carried(folder / "none") == {}
    newest = max(folder.glob("step-*"), key=lambda path: int(path.name[5:]))
    state = json.loads((newest / "state.json").read_text())
    (newest / "state.json").write_text(json.dumps(state | {"carried": {"reads": {"a": "b"}}}))
    (folder / "step-999").write_text("no folder")
    assert newest_carried(folder) == {"reads": {"a": "b"}}
    for text in ("[", '"x"', "7.5", '{"carried": "x"}'):
        for path in folder.glob("step-*/state.json"):
            path.write_text(text)
        assert newest_carried(folder) == {}


def test_each_process_goes_on_with_its_own_generators(tmp_path, monkeypatch):
    """The first process writes those of all; a process more is left as it is seeded."""

    def draws():
        return float(torch.rand(())), random.random()

    states, expected = [], []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        random.seed(seed)
        states.append(training_state.random_state())
        expected.append(draws())
    assert len({*expected}) == 3
    monkeypatch.setattr(
        training_state.distributed,
        "all_gather",
        lambda mine: states if isinstance(mine, tuple) else [mine],
    )
    model, optimizer, _ = tiny()
    kept = store(tmp_path / "c")
    kept.save(3, *training_state.capture(model, optimizer))
    saved = kept.newest()
    for rank, wanted in enumerate(expected):
        monkeypatch.setattr(training_state.distributed, "rank", lambda rank=rank: rank)
        training_state.restore(*tiny(), 3, saved.tensors, saved.facts)
        assert draws() == wanted
    monkeypatch.setattr(training_state.distributed, "rank", lambda: 3)
    torch.manual_seed(9)
    random.seed(9)
    own, fresh = draws(), tiny()
    torch.manual_seed(9)
    random.seed(9)
    training_state.restore(*fresh, 3, saved.tensors, saved.facts)
    assert draws() == own
