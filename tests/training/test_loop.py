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
