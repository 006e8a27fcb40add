"""What processes share, where there is one; and what is told of all where there are more."""

from __future__ import annotations

import pytest
import torch

from llmft.api.errors import StageError
from llmft.api.train_settings import TrainSettings
from llmft.system import distributed
from llmft.training import guard
from llmft.training.step_plan import Plan
from llmft.training.updates import FixedItems, Update


def test_a_process_that_is_alone_finds_everything_as_it_is():
    assert (distributed.count(), distributed.rank()) == (1, 0)
    assert distributed.on_rank_zero(lambda: "made") == "made"
    assert distributed.all_gather(7) == [7]
    assert distributed.all_reduce_max(15) == 15
    assert distributed.merged({"loss": (2.0, 4.0)}) == {"loss": (2.0, 4.0)}
    tensor = torch.ones(2)
    assert distributed.all_reduce_sum(tensor) is tensor


def test_a_loss_that_is_not_finite_names_the_rows_of_all_processes(monkeypatch):
    monkeypatch.setattr(distributed, "all_gather", lambda names: [names, ["row 8", "row 9"]])
    update = Update([["a", "b"]], [3, 4], 2.0, 2, {"loss": (float("nan"), 2.0)})
    with pytest.raises(StageError, match="rows: row 3, row 4, row 8, row 9"):
        guard.may_update(update, 1.0, 0, TrainSettings())


class Counted:
    def weight(self, batch):
        return float(len(batch))


def test_the_last_step_of_an_epoch_may_have_no_rows_for_a_process(monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 2)
    settings = TrainSettings(per_device_train_batch_size=2)
    plan = Plan.of(5, settings, seed=3, processes=2)
    taken = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        (update,) = FixedItems(list(range(5)), Counted(), plan).updates(1, lambda: False)
        assert update.weight == 1.0  # of all processes
        taken.append(update.passes)
    assert [len(passes) for passes in taken] == [1, 0]
