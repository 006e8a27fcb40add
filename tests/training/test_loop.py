"""The training loop: gradients, order, schedule, guards and signals."""

from __future__ import annotations

import math
import os
import signal
from contextlib import suppress

import pytest
import torch
from llmft_alignments.sft import CompletionLoss
from transformers import get_linear_schedule_with_warmup

from llmft.api import Encoded
from llmft.api.errors import CheckpointError, EnvironmentFault, Interrupted, StageError
from llmft.api.evaluate_settings import EvaluateSettings
from llmft.api.train_settings import LrSchedulerKwargs, TrainSettings
from llmft.modeling.decoding import Stopped
from llmft.modeling.sharded_layers import ATTRIBUTE, ShardedLayers
from llmft.modeling.tiny_models import tiny_llama
from llmft.training import loop
from llmft.training.validation import Validation


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


@pytest.mark.parametrize("divided", [False, True])
def test_no_copies_in_16_bits_are_kept_of_weights_that_are_divided(divided):
    """Autocast keeps one of each trained weight to the pass's end, whoever has the weight."""
    kept = []

    class Watching(CompletionLoss):
        def loss(self, model, batch):
            kept.append(torch.is_autocast_cache_enabled())
            return super().loss(model, batch)

    model = tiny_llama()
    if divided:
        setattr(model, ATTRIBUTE, ShardedLayers([]))
    settings = TrainSettings(per_device_train_batch_size=4, max_steps=1, bf16=True)
    loop.train(model, items(), Watching(), settings, seed=3)
    assert kept == [not divided]


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
        super().__init__()
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
        super().__init__()
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


# --- going on from a checkpoint ----------------------------------------------------------------


def stored(folder, keep: int = 9):
    from llmft.training.checkpoints import Checkpoints

    return Checkpoints(folder, "run", {"rows": "abc"}, keep=keep)


SAVING = TrainSettings(
    per_device_train_batch_size=4, max_steps=5, logging_steps=2, learning_rate=0.01,
    save_strategy="steps", save_steps=1, warmup_steps=1,
)  # fmt: skip


def run_on(folder, saved=None, settings=SAVING, objective=None, stop_after: int = 0):
    """Train with checkpoints; return (model, report, the lines told, how it was interrupted)."""
    model, lines, how = tiny_llama(), [], None
    report = None

    def on_step(step, steps, metrics, log):
        lines.append((step, log, {k: v for k, v in metrics.items() if "second" not in k}))
        if step == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        report = loop.train(
            model, items(), objective or CompletionLoss(), settings, seed=3, on_step=on_step,
            checkpoints=stored(folder), saved=saved,
        )  # fmt: skip
    except Interrupted as error:
        how = error
    return model, report, lines, how


def test_c11_a_training_that_goes_on_ends_in_the_bits_of_one_that_never_stopped(tmp_path):
    whole, report, lines, _ = run_on(tmp_path / "whole")
    _, _, first, how = run_on(tmp_path / "cut", stop_after=3)
    assert "at the end of step 3 of 5" in how.faults[0].what
    saved = stored(tmp_path / "cut").newest()
    assert saved.step == 3
    model, again, rest, _ = run_on(tmp_path / "cut", saved)
    for p, q in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert [*first, *rest] == lines, "also the mean of a log that spans the stop"
    assert (again.losses, again.steps, again.items) == (report.losses, 5, report.items)
    assert again.seconds > 0


def test_seconds_are_those_of_the_training_and_of_what_was_before_the_stop(tmp_path):
    _, report, *_ = run_on(tmp_path / "whole")
    assert 0 < report.seconds < 600
    run_on(tmp_path / "cut", stop_after=3)
    saved = stored(tmp_path / "cut").newest()
    saved.facts["report"]["seconds"] = 5000.0
    _, again, *_ = run_on(tmp_path / "cut", saved)
    assert 5000 < again.seconds < 5600


def test_a_signal_saves_where_no_checkpoint_is_due_and_without_checkpoints_saves_none(tmp_path):
    settings = SAVING.model_copy(update={"save_strategy": "no"})
    run_on(tmp_path / "cut", settings=settings, stop_after=2)
    assert stored(tmp_path / "cut").steps() == [2]
    run_on(tmp_path / "whole", settings=settings)
    assert stored(tmp_path / "whole").steps() == []


@pytest.mark.parametrize(("change", "said"), [
    ({"max_steps": 2}, "the run is at step 3 already, and the recipe now ends at 2"),
    ({"max_steps": 3}, ""),
])  # fmt: skip
def test_c5_a_recipe_that_ends_before_the_checkpoint_is_refused(change, said, tmp_path):
    run_on(tmp_path / "cut", stop_after=3)
    saved = stored(tmp_path / "cut").newest()
    settings = SAVING.model_copy(update=change)
    if said:
        with pytest.raises(CheckpointError, match=said):
            run_on(tmp_path / "cut", saved, settings)
    else:
        _, report, lines, _ = run_on(tmp_path / "cut", saved, settings)
        assert (report.steps, lines) == (3, [])


def test_a_stage_of_two_processes_goes_on_in_one(tmp_path):
    run_on(tmp_path / "cut", stop_after=3)
    saved = stored(tmp_path / "cut").newest()
    saved.facts["others"] = [{}]
    assert run_on(tmp_path / "cut", saved)[1].steps == 5


class Drawing(CompletionLoss):
    """An online objective: it draws the prompts themselves, and keeps count of its draws."""

    items_per_prompt = 1
    rates_per_step = 1

    def __init__(self, stops_at: int = -1) -> None:
        super().__init__()
        self.draws, self.stops_at = 0, stops_at

    def sample_rollouts(self, prompts, numbers, step, stopping):
        if step == self.stops_at:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopping()
            raise Stopped
        self.draws += 1
        return list(prompts)

    def updates(self, items, step):
        yield list(range(items // 2))
        yield list(range(items // 2, items))

    def should_continue(self, means) -> bool:
        return True

    def step_metrics(self):
        return {"reward": (3.0 * self.draws, 2.0)}

    def state(self):
        return {"draws": self.draws}

    def restore(self, state) -> None:
        self.draws = state["draws"]


@pytest.mark.parametrize("warmup", [{"warmup_steps": 2}, {"warmup_ratio": 0.3}])
@pytest.mark.parametrize("per_step", [1, 2])
def test_the_rate_moves_with_each_update_where_an_objective_says_so(per_step, warmup, monkeypatch):
    """Three steps of two updates each, beside transformers' own schedule of as many."""
    seen: list[float] = []

    class Moving(Drawing):
        rates_per_step = per_step

    def noting(self, *args, **kwargs):
        seen.append(self.param_groups[0]["lr"])

    monkeypatch.setattr(torch.optim.SGD, "step", noting)
    settings = TrainSettings(
        per_device_train_batch_size=12, max_steps=6, optim="sgd", learning_rate=0.1, **warmup
    )
    objective = Moving()
    loop.train(tiny_llama(), items(), objective, settings, seed=3, online=objective)
    rises = 2 * per_step if "warmup_steps" in warmup else math.ceil(0.3 * 6 * per_step)
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = get_linear_schedule_with_warmup(other, rises, 6 * per_step)
    rates = []
    for _ in range(6 * per_step):
        rates += theirs.get_last_lr() * (2 // per_step)
        theirs.step()
    assert seen == pytest.approx(rates)
    assert len(set(rates)) > 4


def test_of_a_step_of_several_updates_the_mean_gradient_norm_is_told():
    """The rate is so small that both updates have the gradient of the first weights."""

    class Noting(Drawing):
        def loss(self, model, batch):
            halves.append(batch)
            return super().loss(model, batch)

    settings = TrainSettings(
        per_device_train_batch_size=12, max_steps=1, optim="sgd", learning_rate=1e-12
    )
    halves, lines, objective = [], [], Noting()
    loop.train(
        tiny_llama(), items(), objective, settings, seed=3, online=objective,
        on_step=lambda step, steps, metrics, log: lines.append(metrics),
    )  # fmt: skip
    norms = []
    for half in list(halves):
        model = tiny_llama()
        loss, _ = CompletionLoss().loss(model, half)
        (loss / sum(row.n_labels for row in half)).backward()
        norms.append(math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters())))
    assert [len(half) for half in halves] == [6, 6]
    assert lines[0]["grad_norm"] == pytest.approx(sum(norms) / 2, rel=1e-4)


def online(folder, objective, saved=None, **change):
    model, lines = tiny_llama(), []
    settings = SAVING.model_copy(update={"save_strategy": "no", **change})
    try:
        report = loop.train(
            model, items(), objective, settings, seed=3, saved=saved, online=objective,
            checkpoints=stored(folder),
            on_step=lambda step, steps, metrics, log: lines.append(metrics["reward"]),
        )  # fmt: skip
    except Interrupted as error:
        return model, error, lines
    return model, report, lines


def test_t6_a_stop_while_items_are_drawn_saves_the_step_before_and_goes_on_in_its_bits(tmp_path):
    whole, report, lines = online(tmp_path / "whole", Drawing(), logging_steps=1)
    assert report.items == 12 + 8
    assert lines == [1.5, 3.0, 4.5, 6.0, 7.5]
    _, how, first = online(tmp_path / "cut", Drawing(stops_at=3), logging_steps=1)
    assert "stopped by SIGTERM at the end of step 3 of 5" in how.faults[0].what
    saved = stored(tmp_path / "cut").newest()
    assert (saved.step, saved.facts["objective"]) == (3, {"draws": 3})
    model, again, rest = online(tmp_path / "cut", Drawing(), saved, logging_steps=1)
    assert [*first, *rest] == lines
    assert again.losses == report.losses
    for p, q in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_t6_a_stop_while_the_first_items_are_drawn_has_nothing_to_save(tmp_path):
    _, how, _ = online(tmp_path / "cut", Drawing(stops_at=0))
    assert "in the first step" in how.faults[0].what
    assert stored(tmp_path / "cut").steps() == []


def test_a_stop_while_items_are_drawn_writes_no_checkpoint_twice(tmp_path, monkeypatch):
    from llmft.training.checkpoints import Checkpoints

    written = []
    save = Checkpoints.save

    def counted(self, step, *more):
        written.append(step)
        save(self, step, *more)

    monkeypatch.setattr(Checkpoints, "save", counted)
    online(tmp_path / "cut", Drawing(stops_at=2), save_strategy="steps")
    assert written == [1, 2]


def test_every_parameter_that_is_trained_is_in_the_optimizer_by_the_groups_rate():
    model, start = tiny_llama(), tiny_llama()
    model.requires_grad_(False)
    some = [model.lm_head.weight.requires_grad_(), model.model.norm.weight.requires_grad_()]
    groups = [{"params": some[:1]}, {"params": some[1:], "lr": 0.25}]
    settings = TrainSettings(max_steps=1, optim="sgd", learning_rate=0.5, max_grad_norm=0)
    loop.train(model, items(8), CompletionLoss(), settings, seed=0, groups=groups)
    loss, _ = CompletionLoss().loss(start, items(8))
    (loss / sum(row.n_labels for row in items(8))).backward()
    for name, rate in (("lm_head.weight", 0.5), ("model.norm.weight", 0.25)):
        before = start.get_parameter(name)
        torch.testing.assert_close(
            model.get_parameter(name).detach(), before.detach() - rate * before.grad,
            atol=1e-6, rtol=1e-4,
        )  # fmt: skip
    assert torch.equal(model.model.embed_tokens.weight, start.model.embed_tokens.weight)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: out of memory")])
def test_t4_memory_that_is_out_is_one_error_and_others_stay_what_they_are(error):
    class Out(CompletionLoss):
        def loss(self, model, batch):
            raise error

    settings = TrainSettings(per_device_train_batch_size=4, max_steps=1)
    with pytest.raises(EnvironmentFault, match=r"E205.*out of memory at step 1") as caught:
        loop.train(tiny_llama(), items(), Out(), settings, seed=0)
    assert caught.value.__cause__ is error
    error = RuntimeError("shapes do not fit")
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        loop.train(tiny_llama(), items(), Out(), settings, seed=0)


# --- scores during training --------------------------------------------------------------------


def following(folder, scores, saved=None, stop_after=0, **change):
    """Train by reduce_lr_on_plateau on these scores; return the rates, and the model."""
    settings = SAVING.model_copy(
        update={
            "lr_scheduler_type": "reduce_lr_on_plateau", "warmup_steps": 0, "save_steps": 1,
            "lr_scheduler_kwargs": LrSchedulerKwargs(factor=0.5, patience=0), **change,
        }
    )  # fmt: skip
    asked = EvaluateSettings(eval_strategy="steps", eval_steps=1)
    validation = Validation(asked, lambda step, **_: {"loss": scores[step - 1]})
    model, rates = tiny_llama(), []

    def on_step(step, steps, metrics, log):
        rates.append(metrics["learning_rate"])
        if step == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    with suppress(Interrupted):
        loop.train(
            model, items(), CompletionLoss(), settings, seed=3, on_step=on_step,
            checkpoints=stored(folder), saved=saved, validation=validation,
        )  # fmt: skip
    return rates, model


def test_a_rate_that_follows_scores_falls_after_them_and_goes_on_in_its_bits(tmp_path):
    scores = [2.0, 2.5, 1.5, 1.5, 1.0]  # worse after step 2, not better after step 4
    rates, whole = following(tmp_path / "whole", scores)
    assert rates == [0.01, 0.01, 0.005, 0.005, 0.0025]
    first, _ = following(tmp_path / "cut", scores, stop_after=2)  # its scores are owed
    saved = stored(tmp_path / "cut").newest()
    assert (saved.step, saved.facts["evaluation"]["step"]) == (2, 1)
    rest, model = following(tmp_path / "cut", scores, saved)
    assert [*first, *rest] == rates
    for p, q in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)
    following(tmp_path / "edited", scores, stop_after=3)
    again = stored(tmp_path / "edited").newest()
    doubled, _ = following(tmp_path / "edited", scores, again, learning_rate=0.02)
    assert doubled == pytest.approx([0.01, 0.005]), "an edited peak is applied"


def test_the_time_of_a_score_is_no_time_of_training(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    def score(step, **_):
        now[0] += 50.0
        return {"loss": 1.0}

    def on_step(step, steps, metrics, log):
        speeds.append(metrics["tokens_per_second"])

    class Timed(CompletionLoss):
        def loss(self, model, batch):
            now[0] += 2.0
            loss, sums = super().loss(model, batch)
            return loss, {**sums, "tokens": 10.0}

    asked = EvaluateSettings(eval_strategy="steps", eval_steps=1)
    speeds: list[float] = []
    settings = SAVING.model_copy(update={"logging_steps": 1, "gradient_accumulation_steps": 1})
    report = loop.train(
        tiny_llama(), items(), Timed(), settings, seed=3, on_step=on_step,
        validation=Validation(asked, score),
    )  # fmt: skip
    assert report.seconds == 2.0 * report.steps
    assert speeds == [5.0] * report.steps
