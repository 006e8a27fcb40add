"""Numbers that are not finite, memory that is out, and what random numbers of others do."""

from __future__ import annotations

import json
import math

import pytest
import torch
from llmft_alignments.sft import CompletionLoss

from llmft.api import Encoded, Progress, Tracker, TrackerConfig
from llmft.api.errors import EnvironmentFault, StageError
from llmft.api.train_settings import TrainSettings
from llmft.engine.trackers import Trackers
from llmft.modeling.tiny_models import tiny_llama
from llmft.training import loop
from llmft.training.checkpoints import Checkpoints


def rows(count: int = 12) -> list[Encoded]:
    ids = [tuple(range(5, 12 + number)) for number in range(count)]
    return [Encoded(row, (-100, *row[1:]), f"rows.jsonl:{n}") for n, row in enumerate(ids, 1)]


class Failing(CompletionLoss):
    """A loss that does something else in some of its passes, counted from 1."""

    def __init__(self, does, *at: int) -> None:
        super().__init__()
        self.does, self.at, self.calls = does, at, 0

    def loss(self, model, batch):
        self.calls += 1
        loss, metrics = super().loss(model, batch)
        return (self.does(loss) if self.calls in self.at else loss), metrics


def settings(**changes) -> TrainSettings:
    return TrainSettings(per_device_train_batch_size=4, max_steps=3, **changes)


def poison(loss):
    return loss * math.nan


def test_t1_a_step_that_is_not_finite_can_be_left_out_and_is_counted(tmp_path):
    told: list[dict] = []
    kept = Checkpoints(tmp_path / "c", "run", {})
    model = tiny_llama()
    report = loop.train(
        model, rows(), Failing(poison, 2),
        settings(on_nan="skip", save_strategy="steps", save_steps=1, logging_steps=1), seed=3,
        on_step=lambda step, steps, metrics, log: told.append(dict(metrics)), checkpoints=kept,
    )  # fmt: skip
    assert report.skipped == 1
    assert report.losses[1] is None
    assert report.train_loss == pytest.approx((report.losses[0] + report.losses[2]) / 2)
    assert [m.get("skipped_updates") for m in told] == [None, 1, 1]
    assert "loss" not in told[1]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    saved = kept.newest()  # it is JSON without NaN, and goes on with the count
    assert saved.facts["report"]["skipped"] == 1


def test_t1_a_step_that_is_left_out_changes_no_weight():
    constant = settings(on_nan="skip", lr_scheduler_type="constant", optim="sgd")
    skipping, shorter = tiny_llama(), tiny_llama()
    loop.train(skipping, rows(), Failing(poison, 2, 3), constant, seed=3)
    loop.train(
        shorter, rows(), CompletionLoss(), constant.model_copy(update={"max_steps": 1}), seed=3
    )
    for ours, theirs in zip(skipping.parameters(), shorter.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_t1_where_every_step_is_left_out_nothing_was_learnt():
    with pytest.raises(StageError, match=r"E301.*no update of 3 steps was finite"):
        loop.train(tiny_llama(), rows(), Failing(poison, 1, 2, 3), settings(on_nan="skip"), seed=3)


def raises(error: Exception):
    def does(loss):
        raise error

    return does


def allocates_a_petabyte(loss):
    return loss * torch.empty(2**50 // 4).sum()


@pytest.mark.parametrize("does", [
    raises(MemoryError()), raises(torch.OutOfMemoryError("CUDA out of memory. Tried ...")),
    allocates_a_petabyte,
], ids=["Python", "device", "allocator"])  # fmt: skip
def test_t4_memory_that_is_out_names_the_longest_row_and_what_to_lower(tmp_path, does):
    kept = Checkpoints(tmp_path / "c", "run", {})
    with pytest.raises(EnvironmentFault) as caught:
        loop.train(
            tiny_llama(), rows(4), Failing(does, 3),
            settings(save_strategy="steps", save_steps=1, max_length=64), seed=3, checkpoints=kept,
        )  # fmt: skip
    assert caught.value.exit_code == 4
    (fault,) = caught.value.faults
    assert fault.code == "E205"
    assert "at step 3; the longest row of the step is 'rows.jsonl:4' with 10 tokens" in fault.what
    ways = [
        fault.fix.index(name)
        for name in ("per_device_train_batch_size (now 4)", "gradient_checkpointing", "max_length")
    ]
    assert ways == sorted(ways)
    assert kept.newest().step == 2  # intact


def test_t4_a_setting_that_is_at_its_end_is_not_named():
    at_the_end = TrainSettings(per_device_train_batch_size=1, gradient_checkpointing=True)
    with pytest.raises(EnvironmentFault) as caught:
        loop.train(tiny_llama(), rows(4), Failing(raises(MemoryError()), 1), at_the_end, seed=3)
    assert caught.value.faults[0].fix == (
        "in this order: lower train.max_length (now the model's limit)"
    )


def test_t4_another_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match="shapes"):
        loop.train(
            tiny_llama(), rows(), Failing(raises(RuntimeError("shapes")), 1), settings(), seed=3
        )


class Dicing(Tracker[TrackerConfig]):
    """Draws random numbers whenever it is told something."""

    method = "dicing"
    Config = TrackerConfig

    def progress(self, progress: Progress) -> None:
        import random

        import numpy

        random.random(), numpy.random.rand(), torch.rand(3)
        torch.manual_seed(5)


def test_p6_a_tracker_that_draws_random_numbers_changes_no_weight():
    def weights(trackers: Trackers) -> torch.Tensor:
        torch.manual_seed(1)
        model = tiny_llama()
        model.train()
        model.config.attention_dropout = 0.3
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.3
        loop.train(
            model, rows(), CompletionLoss(), settings(), seed=3,
            on_step=lambda step, steps, metrics, log: trackers.progress(
                Progress("sft", "train", step, steps, metrics, log)
            ),
        )  # fmt: skip
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    quiet, diced = weights(Trackers([])), weights(Trackers([Dicing(TrackerConfig(method="x"))]))
    assert torch.equal(quiet, diced)


def test_n3_metrics_stay_where_a_tracker_fails_in_mid_run(tmp_path):
    class Dying(Dicing):
        def progress(self, progress: Progress) -> None:
            if progress.done == 2:
                raise ConnectionError("the network is gone")

    from llmft_trackers.jsonl import Jsonl

    from llmft.api import RunInfo, StageInfo

    kept = Jsonl(Jsonl.Config(method="jsonl"))
    trackers = Trackers([Dying(TrackerConfig(method="x")), kept])
    trackers.run_started(RunInfo("r", tmp_path, {}, ("sft",)))
    (tmp_path / "stages" / "sft").mkdir(parents=True)
    trackers.stage_started(StageInfo("sft", "lora", "sft", 1, 1, 1, 1, 1, 3))
    for step in (1, 2, 3):
        trackers.progress(Progress("sft", "train", step, 3, {"loss": 1.0}, True))
    lines = (tmp_path / "stages/sft/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
