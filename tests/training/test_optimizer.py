"""Which parameters learn at which rate, and by which numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from llmft.api.errors import StageError
from llmft.api.train_settings import TrainSettings
from llmft.modeling.tiny_models import tiny_gpt2, tiny_llama
from llmft.training.optimizer import (
    decay_groups,
    installed_method,
    joined_groups,
    make_optimizer,
    make_schedule,
)
from llmft.training.step_plan import refuse_endless_warmup

A, B, HEAD = (torch.nn.Parameter(torch.zeros(n)) for n in (1, 2, 3))


def sizes(groups):
    return [([p.numel() for p in group["params"]], group.get("lr")) for group in groups]


def test_what_asks_for_nothing_is_one_group():
    assert sizes(joined_groups([A, B, HEAD], None, ())) == [([1, 2, 3], None)]


def test_a_group_beside_the_adapter_takes_its_parameters_out_of_the_adapters_groups():
    head = [{"params": [HEAD], "lr": 0.5}]
    assert sizes(joined_groups([A, B, HEAD], None, head)) == [([1, 2], None), ([3], 0.5)]
    own = [{"params": [A, HEAD]}, {"params": [B], "lr": 0.1}]
    expected = [([1], None), ([2], 0.1), ([3], 0.5)]
    assert sizes(joined_groups([A, B, HEAD], own, head)) == expected


def test_a_group_that_is_left_empty_is_none():
    head = [{"params": [HEAD], "lr": 0.5}]
    own = [{"params": [HEAD]}, {"params": [A, B], "lr": 0.1}]
    assert sizes(joined_groups([A, B, HEAD], own, head)) == [([1, 2], 0.1), ([3], 0.5)]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("bias", ["none", "all"])
def test_biases_and_norms_are_decayed_as_by_transformers_trainer(make, bias):
    from llmft_adapters.full import Full
    from llmft_adapters.lora import Lora
    from transformers import Trainer

    whole = Full(Full.Config(method="full")).attach(make())
    config = {"method": "lora", "bias": bias, "modules_to_save": ["norm" if make is tiny_llama
              else "ln_f"]}  # fmt: skip
    for model in (whole, Lora(Lora.Config.model_validate(config)).attach(make())):
        names = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
        groups = [{"params": [p for p in model.parameters() if p.requires_grad]}]
        made = decay_groups(groups, model, TrainSettings(weight_decay=0.1))
        decayed = {names[id(p)] for g in made if "weight_decay" not in g for p in g["params"]}
        kept = {names[id(p)] for g in made if g.get("weight_decay") == 0.0 for p in g["params"]}
        theirs = set(Trainer.get_decay_parameter_names(None, model)) & set(names.values())
        assert decayed == theirs
        assert kept == set(names.values()) - theirs
        assert kept
        assert decay_groups(groups, model, TrainSettings()) == groups


def test_a_groups_rate_stays_and_its_own_decay_too():
    model = torch.nn.Linear(2, 2)
    group = {"params": list(model.parameters()), "lr": 0.5}
    made = decay_groups([group], model, TrainSettings(weight_decay=0.1))
    assert [(len(g["params"]), g["lr"], g.get("weight_decay")) for g in made] == [
        (1, 0.5, None), (1, 0.5, 0.0),
    ]  # fmt: skip
    stated = {**group, "weight_decay": 0.3}
    assert decay_groups([stated], model, TrainSettings(weight_decay=0.1)) == [stated]


def test_a_stage_leaves_norms_out_of_the_decay(run, tmp_path):
    from safetensors.torch import load_file

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    moved = {}
    for decay in (0.0, 1.0):
        train = {"max_steps": 1, "learning_rate": 0.01, "weight_decay": decay}
        summary = run({
            "name": "sft", "adapter": {"method": "full"}, "alignment": {"method": "sft"},
            "data": {"method": "jsonl", "path": str(rows)}, "train": train,
        })  # fmt: skip
        moved[decay] = load_file(summary.folder / "stages/sft/adapter/model.safetensors")
    same = {n for n, t in moved[0.0].items() if torch.equal(t, moved[1.0][n])}
    assert same == {n for n in moved[0.0] if "norm" in n}


GRADIENTS = (0.4, -1.0, 0.25)
ADAM = {
    "learning_rate": 0.05, "adam_beta1": 0.6, "adam_beta2": 0.7, "adam_epsilon": 0.3,
    "weight_decay": 0.5,
}  # fmt: skip


def adamw_by_hand(weight: float, *, lr=0.05, beta1=0.6, beta2=0.7, eps=0.3, decay=0.5) -> float:
    """Loshchilov and Hutter 2019, algorithm 2, written out for one number."""
    first = second = 0.0
    for step, gradient in enumerate(GRADIENTS, 1):
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        unbiased = first / (1 - beta1**step), second / (1 - beta2**step)
        weight -= lr * decay * weight
        weight -= lr * unbiased[0] / (math.sqrt(unbiased[1]) + eps)
    return weight


def trained(settings: TrainSettings, start: float = 2.0) -> float:
    weight = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = make_optimizer([{"params": [weight]}], settings)
    for gradient in GRADIENTS:
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    return float(weight.detach())


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_adamw_with_no_number_at_its_default_is_the_papers(optim):
    assert trained(TrainSettings(optim=optim, **ADAM)) == pytest.approx(adamw_by_hand(2.0))


def test_sgd_decays_its_weights_with_the_gradient():
    settings = TrainSettings(optim="sgd", learning_rate=0.05, weight_decay=0.5)
    weight = 2.0
    for gradient in GRADIENTS:
        weight -= 0.05 * (gradient + 0.5 * weight)
    assert trained(settings) == pytest.approx(weight)


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_the_optimisers_of_bitsandbytes_get_the_same_numbers(optim):
    bitsandbytes = pytest.importorskip("bitsandbytes").optim
    classes = {
        "adamw_8bit": bitsandbytes.AdamW8bit, "paged_adamw_8bit": bitsandbytes.PagedAdamW8bit,
        "paged_adamw_32bit": bitsandbytes.PagedAdamW32bit,
    }  # fmt: skip
    optimizer = make_optimizer([{"params": [A]}], TrainSettings(optim=optim, **ADAM))
    assert type(optimizer) is classes[optim]
    (group,) = optimizer.param_groups
    told = [group[name] for name in ("lr", "betas", "eps", "weight_decay")]
    assert told == [0.05, (0.6, 0.7), 0.3, 0.5]


def test_a_groups_own_rate_goes_before_the_settings():
    groups = [{"params": [A]}, {"params": [B], "lr": 0.5}]
    rates = [g["lr"] for g in make_optimizer(groups, TrainSettings(**ADAM)).param_groups]
    assert rates == [0.05, 0.5]


def rates(steps: int, **settings) -> list[float]:
    optimizer = make_optimizer([{"params": [A]}], TrainSettings(optim="sgd", **settings))
    schedule = make_schedule(optimizer, TrainSettings(optim="sgd", **settings), steps)
    found = []
    for _ in range(steps):
        found.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return found


def test_a_part_of_a_step_of_warm_up_is_a_whole_one():
    """A ratio of 0.25 of 6 steps is 1.5 of them: two, as transformers rounds."""
    found = rates(6, learning_rate=1.0, lr_scheduler_type="constant_with_warmup", warmup_ratio=0.25)
    assert found == pytest.approx([0, 1 / 2, 1, 1, 1, 1])


SCHEDULES = {
    "constant": ({}, [1, 1, 1, 1]),
    "constant_with_warmup": ({"warmup_steps": 2}, [0, 0.5, 1, 1]),
    "linear": ({"warmup_steps": 1}, [0, 1, 2 / 3, 1 / 3]),
    "cosine": ({}, [1, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 + math.cos(3 * math.pi / 4)) / 2]),
    "polynomial": ({}, [1, 0.75, 0.5, 0.25]),
    "inverse_sqrt": ({"warmup_steps": 1}, [0, 1, math.sqrt(1 / 2), math.sqrt(1 / 3)]),
}


WITH_SETTINGS = [
    ("cosine", {"num_cycles": 1.5}),
    ("cosine_with_restarts", {"num_cycles": 3.0}),
    ("cosine_with_min_lr", {"min_lr": 0.125}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.2, "num_cycles": 0.75}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.2, "warmup_lr_rate": 0.1}),
    ("polynomial", {"lr_end": 0.125, "power": 2.0}),
    ("inverse_sqrt", {"timescale": 7}),
    ("warmup_stable_decay", {"num_decay_steps": 4}),
    ("warmup_stable_decay", {"num_decay_steps": 4, "warmup_type": "cosine", "decay_type": "1-sqrt",
                             "min_lr_ratio": 0.25}),
    ("warmup_stable_decay", {"num_decay_steps": 3, "num_cycles": 0.25}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given"), WITH_SETTINGS)
def test_a_schedule_with_settings_is_transformers_own_curve(name, given):
    from transformers import Trainer, TrainingArguments

    settings = {"learning_rate": 0.5, "lr_scheduler_type": name, "warmup_steps": 3}
    theirs = dict(given)
    if name == "cosine_with_restarts":
        theirs["num_cycles"] = 3
    args = TrainingArguments(lr_scheduler_kwargs=theirs, report_to=[], **settings)
    optimizer = torch.optim.SGD([A], lr=0.5)
    trainer = SimpleNamespace(args=args, lr_scheduler=None, optimizer=optimizer)
    schedule = Trainer.create_scheduler(trainer, 12, optimizer)
    expected = []
    for _ in range(12):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates(12, lr_scheduler_kwargs=given, **settings) == expected
    assert rates(12, lr_scheduler_kwargs=given, **settings) != rates(12, **plain(settings))


def plain(settings):
    """Return the settings with a schedule of the same family that has none of its own."""
    names = {"cosine_with_min_lr": "cosine", "cosine_warmup_with_min_lr": "cosine",
             "warmup_stable_decay": "constant_with_warmup"}  # fmt: skip
    return {**settings, "lr_scheduler_type": names.get(settings["lr_scheduler_type"],
                                                       settings["lr_scheduler_type"])}  # fmt: skip


@pytest.mark.parametrize(("train", "said"), [
    ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"power": 2.0}}, "has no power"),
    ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"min_lr": 0.1}}, "has no min_lr"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "needs one of min_lr and min_lr_rate"),
    ({"lr_scheduler_type": "cosine_with_min_lr",
      "lr_scheduler_kwargs": {"min_lr": 1e-5, "min_lr_rate": 0.1}}, "needs one of min_lr and"),
    ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.1}},
     "min_lr is not below learning_rate"),
    ({"lr_scheduler_type": "warmup_stable_decay"}, "needs num_decay_steps"),
    ({"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 1.5}},
     "a whole number"),
    ({"lr_scheduler_type": "reduce_lr_on_plateau", "warmup_steps": 2}, "has no warm-up"),
    ({"lr_scheduler_type": "polynomial", "learning_rate": 0.1,
      "lr_scheduler_kwargs": {"lr_end": 0.2}}, "decays to 0.2"),
])  # fmt: skip
def test_settings_that_a_schedule_does_not_have_are_refused(train, said):
    with pytest.raises(ValidationError, match=said):
        TrainSettings(**train)


def test_a_decay_longer_than_the_training_is_refused():
    settings = TrainSettings(
        lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs={"num_decay_steps": 8},
        warmup_steps=3,
    )  # fmt: skip
    last = installed_method("schedule", settings).last_steps()
    refuse_endless_warmup("s", settings, 11, last)
    with pytest.raises(StageError, match="take 3 and 8 steps, of 10 in all"):
        refuse_endless_warmup("s", settings, 10, last)


@pytest.mark.parametrize("optim", [
    "adafactor", "adagrad", "rmsprop", "lion_32bit", "lion_8bit", "paged_lion_32bit",
    "paged_lion_8bit",
])  # fmt: skip
def test_an_optimiser_moves_weights_as_trainers_does(optim, tmp_path):
    """Built by transformers' Trainer from the same settings, it takes the same steps."""
    from transformers import Trainer, TrainingArguments

    named = {"learning_rate": 0.05, "weight_decay": 0.5, "adam_beta1": 0.6, "adam_beta2": 0.7}
    args = TrainingArguments(output_dir=str(tmp_path), optim=optim, report_to=[], **named)
    cls, options = Trainer.get_optimizer_cls_and_kwargs(args)
    found = []
    for make in (
        lambda p: make_optimizer([{"params": [p]}], TrainSettings(optim=optim, **named)),
        lambda p: cls([{"params": [p], "weight_decay": 0.5}], **options),
    ):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(80, 64))
        optimizer = make(weight)
        for _ in range(3):
            weight.grad = torch.randn(80, 64)
            optimizer.step()
        found.append(weight.detach())
    assert torch.equal(*found)


def test_muon_moves_matrices_by_orthogonal_steps_of_adamws_size():
    """Its first step is the momentum made orthogonal, scaled to the size that AdamW's has."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(32, 16))
    before = weight.detach().clone()
    settings = TrainSettings(optim="muon", learning_rate=0.05, weight_decay=0.5)
    optimizer = make_optimizer([{"params": [weight]}], settings)
    weight.grad = torch.randn(32, 16)
    optimizer.step()
    moved = (weight.detach() - before * (1 - 0.05 * 0.5)) / -0.05
    singular = torch.linalg.svdvals(moved / (0.2 * math.sqrt(32)))
    assert singular.min() > 0.6  # Newton-Schulz brings them near 1
    assert singular.max() < 1.3
    with pytest.raises(StageError, match=r"trains a tensor of the shape \[3\] too"):
        make_optimizer([{"params": [weight, torch.nn.Parameter(torch.zeros(3))]}], settings)


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_schedule_by_hand(name):
    extra, expected = SCHEDULES[name]
    found = rates(4, learning_rate=1.0, lr_scheduler_type=name, **extra)
    assert found == pytest.approx(expected, abs=1e-6)
