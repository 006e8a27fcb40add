"""The training loop: gradients, order, schedule, guards and signals."""

from __future__ import annotations

import math
import os
import signal

import pytest
import torch
from llmft_alignments.sft import CompletionLoss

from llmft.api import Encoded
from llmft.api.errors import Interrupted, StageError
from llmft.api.settings import TrainSettings
from llmft.modeling.tiny_models import tiny_llama
from llmft.training import loop


def items(n: int = 12, seed: int = 0) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(n):
        length = int(torch.randint(4, 20, (1,), generator=generator))
        ids = tuple(torch.randint(0, 256, (length,), generator=generator).tolist())
        made.append(Encoded(ids, (-100, -100, *ids[2:]), f"row {number}"))
    return made


def weights_after(settings: TrainSettings, rows=None, seed: int = 3) -> torch.Tensor:
    model = tiny_llama()
    loop.train(model, rows or items(), CompletionLoss(), settings, seed=seed)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_accumulated_batches_give_the_gradient_of_one_large_batch():
    """The mean is over all label tokens of a step, not a mean of means."""
    whole = TrainSettings(per_device_train_batch_size=12, max_steps=2, optim="sgd", learning_rate=1)
    cut = TrainSettings(
        per_device_train_batch_size=3, gradient_accumulation_steps=4, max_steps=2, optim="sgd",
        learning_rate=1.0,
    )  # fmt: skip
    torch.testing.assert_close(weights_after(cut), weights_after(whole), atol=2e-6, rtol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    settings = TrainSettings(per_device_train_batch_size=4, max_steps=3)
    assert torch.equal(weights_after(settings), weights_after(settings))
    assert not torch.equal(weights_after(settings), weights_after(settings, seed=4))


def test_every_item_is_seen_once_an_epoch():
    plan = loop.Plan.of(10, TrainSettings(per_device_train_batch_size=4), seed=1)
    seen = [i for step in range(plan.steps) for batch in plan.step_batches(step) for i in batch]
    assert sorted(seen) == list(range(10))
    assert seen != sorted(seen)
    assert plan.steps == 3


def test_epochs_differ_in_order_and_half_an_epoch_is_half_the_steps():
    plan = loop.Plan.of(40, TrainSettings(per_device_train_batch_size=4), seed=1)
    assert plan.order(0) != plan.order(1)
    half = TrainSettings(per_device_train_batch_size=4, num_train_epochs=0.5)
    assert loop.Plan.of(40, half, seed=1).steps == 5


def test_the_loss_that_is_reported_is_the_loss_that_was_taken():
    model = tiny_llama()
    rows = items(4)
    from llmft.modeling.forward import label_nll

    with torch.no_grad():
        expected = float(label_nll(model, rows).nll_N.mean())
    seen = []
    settings = TrainSettings(per_device_train_batch_size=4, max_steps=1)
    loop.train(
        model, rows, CompletionLoss(), settings, seed=0,
        on_step=lambda step, steps, metrics, log: seen.append((step, steps, metrics, log)),
    )  # fmt: skip
    ((step, steps, metrics, log),) = seen
    assert (step, steps, log) == (1, 1, True)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["learning_rate"] == settings.learning_rate


class Poisoned(CompletionLoss):
    """A loss that is not a number at one step."""

    def __init__(self, at: int) -> None:
        self.calls, self.at = 0, at

    def loss(self, model, batch):
        self.calls += 1
        loss, metrics = super().loss(model, batch)
        return (loss * math.nan if self.calls == self.at else loss), metrics


@pytest.mark.parametrize("at", [1, 2, 3])
def test_t1_a_loss_that_is_not_finite_stops_before_its_update(at):
    settings = TrainSettings(per_device_train_batch_size=4, max_steps=3)
    broken, whole = tiny_llama(), tiny_llama()
    with pytest.raises(StageError, match=f"not finite at step {at}.*row "):
        loop.train(broken, items(), Poisoned(at), settings, seed=3)
    for p in broken.parameters():
        assert torch.isfinite(p).all()
    if at > 1:
        shorter = settings.model_copy(update={"lr_scheduler_type": "constant"})
        before = tiny_llama()
        loop.train(
            before, items(), CompletionLoss(), shorter.model_copy(update={"max_steps": at - 1}),
            seed=3,
        )  # fmt: skip
        with pytest.raises(StageError):
            loop.train(whole, items(), Poisoned(at), shorter, seed=3)
        for p, q in zip(before.parameters(), whole.parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_t6_a_signal_ends_the_run_at_the_end_of_the_step(number):
    done = []

    def on_step(step, steps, metrics, log):
        done.append(step)
        if step == 2:
            os.kill(os.getpid(), number)

    settings = TrainSettings(per_device_train_batch_size=4, max_steps=30)
    before = signal.getsignal(number)  # a shell has those that it starts behind it ignore SIGINT
    with pytest.raises(Interrupted) as caught:
        loop.train(tiny_llama(), items(), CompletionLoss(), settings, seed=0, on_step=on_step)
    assert done == [1, 2]
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_clipping_bounds_the_update():
    free = TrainSettings(
        per_device_train_batch_size=12, max_steps=1, optim="sgd", learning_rate=1.0, max_grad_norm=0
    )
    start = torch.cat([p.detach().flatten() for p in tiny_llama().parameters()])
    clipped = free.model_copy(update={"max_grad_norm": 0.01})
    assert (weights_after(free) - start).norm() > 0.05
    assert (weights_after(clipped) - start).norm() == pytest.approx(0.01, rel=1e-3)


def test_warmup_ratio_warms_up():
    rates = []
    settings = TrainSettings(
        per_device_train_batch_size=1, max_steps=10, warmup_ratio=0.3,
        lr_scheduler_type="constant_with_warmup", learning_rate=1e-3, logging_steps=1,
    )  # fmt: skip
    loop.train(
        tiny_llama(), items(), CompletionLoss(), settings, seed=0,
        on_step=lambda step, steps, metrics, log: rates.append(metrics["learning_rate"]),
    )  # fmt: skip
    assert rates[:4] == pytest.approx([0, 1e-3 / 3, 2e-3 / 3, 1e-3])
    assert rates[4:] == [1e-3] * 6


def lines_of(objective, settings, rows=None) -> list[dict]:
    """Return what each step of a training tells."""
    found = []
    loop.train(
        tiny_llama(), rows or items(), objective, settings, seed=3,
        on_step=lambda step, steps, metrics, log: found.append(dict(metrics)),
    )  # fmt: skip
    return found


class Infinite(CompletionLoss):
    """A loss that is finite, and at one step has a gradient that is not."""

    def __init__(self, at: int) -> None:
        self.calls, self.at = 0, at

    def loss(self, model, batch):
        self.calls += 1
        loss, metrics = super().loss(model, batch)
        if self.calls == self.at:
            weight = next(model.parameters())
            loss = loss + (weight - weight.detach()).abs().sqrt().sum() * 1e-30  # 0, slope inf
        return loss, metrics


@pytest.mark.parametrize("objective", [Poisoned(2), Infinite(2)])
def test_t1_a_skipped_update_leaves_no_number_that_is_not_finite(objective):
    settings = TrainSettings(
        per_device_train_batch_size=4, max_steps=3, logging_steps=1, on_nan="skip"
    )
    first, skipped, last = lines_of(objective, settings)
    assert "skipped_updates" not in first
    assert skipped["skipped_updates"] == last["skipped_updates"] == 1
    assert "loss" not in skipped
    assert "grad_norm" not in skipped
    told = [number for line in (first, skipped, last) for number in line.values()]
    assert all(math.isfinite(number) for number in told)
    assert first["grad_norm"] > 0
    assert last["grad_norm"] > 0


def test_a_skipped_update_moves_no_weight():
    settings = TrainSettings(per_device_train_batch_size=4, max_steps=1, on_nan="skip")
    model, start = tiny_llama(), tiny_llama()
    with pytest.raises(StageError, match="no update of 1 steps was finite"):
        loop.train(model, items(), Poisoned(1), settings, seed=3)
    for p, q in zip(model.parameters(), start.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_gradient_norm_that_is_told_is_the_one_before_clipping():
    settings = TrainSettings(
        per_device_train_batch_size=12, max_steps=1, optim="sgd", learning_rate=1.0,
        max_grad_norm=0.01,
    )  # fmt: skip
    model = tiny_llama()
    loss, _ = CompletionLoss().loss(model, items())
    (loss / sum(row.n_labels for row in items())).backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
    (line,) = lines_of(CompletionLoss(), settings)
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_a_line_is_told_every_so_many_steps_and_at_the_end_and_is_a_mean_since_the_last():
    settings = TrainSettings(per_device_train_batch_size=4, max_steps=5, logging_steps=2)
    told, losses = [], []

    def on_step(step, steps, metrics, log):
        losses.append(metrics["loss"])
        if log:
            told.append((step, metrics["loss"], metrics["epoch"]))

    report = loop.train(tiny_llama(), items(), CompletionLoss(), settings, seed=3, on_step=on_step)
    assert [(step, epoch) for step, _, epoch in told] == [(2, 2 / 3), (4, 4 / 3), (5, 5 / 3)]
    assert told[-1][1] == pytest.approx(report.losses[4])
    low, high = sorted(report.losses[:2])
    assert low < told[0][1] < high
    assert report.items == 12 + 8


@pytest.mark.parametrize(
    ("limit", "saves", "kept", "room"),
    [(2, 6, 0, 3), (4, 6, 0, 5), (4, 3, 0, 3), (2, 6, 2, 1), (2, 6, 3, 0), (2, 1, 0, 1)],
)
def test_t12_the_disk_has_room_for_the_checkpoints_that_stay_and_the_one_that_is_written(
    limit, saves, kept, room, monkeypatch, tmp_path
):
    """Before the oldest is taken away, the new one is there beside those that stay."""
    from llmft.training.checkpoints import Checkpoints

    asked = []
    monkeypatch.setattr(loop, "check_space", lambda folder, size, count: asked.append(count))
    store = Checkpoints(tmp_path / "stage" / "checkpoints", "run", {})
    for step in range(kept):
        (store.folder / f"step-{step}").mkdir(parents=True)
    settings = TrainSettings(
        per_device_train_batch_size=4, max_steps=saves, save_strategy="steps", save_steps=1,
        save_total_limit=limit,
    )  # fmt: skip
    plan = loop.Plan.of(12, settings, seed=0)
    loop._check_space(store, tiny_llama(), plan, settings)
    assert asked == ([room] if room else [])
