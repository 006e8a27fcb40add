"""The average of the weights: by hand, beside torch's own, and under the public kit."""

from __future__ import annotations

import math

import pytest
import torch
from llmft_callbacks.ema import Ema
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from llmft.api import TrainingStep, TrainSettings
from llmft.testing import CallbackContract


class TestEma(CallbackContract):
    method_class = Ema
    configs = [
        {"decay": 0.9},
        {"decay": 0.5, "bias_correction": False, "update_after_step": 3},
        {"use_ema_warmup": True, "inv_gamma": 2.0, "power": 1.0},
    ]


def averaged(path, dtype=torch.float64, start=0.0, **settings):
    """Return the average after each of the weights that one parameter takes, step by step."""
    weight = torch.nn.Parameter(torch.full((2,), start, dtype=dtype))
    ema = Ema(Ema.Config(method="ema", **settings))
    ema.on_train_begin(TrainingStep(0, len(path), {"w": weight}))
    found = []
    for step, value in enumerate(path, 1):
        with torch.no_grad():
            weight.fill_(value)
        ema.on_step_end(TrainingStep(step, len(path), {"w": weight}))
        found.append(float(ema.weights("result")["w"][0]))
    return found


def test_the_bias_is_corrected_as_adam_corrects_its_moments():
    """Kingma and Ba 2015, algorithm 1: m_n = b m_(n-1) + (1 - b) w_n from 0, over 1 - b^n."""
    path, decay = [3.0, -1.0, 4.0, 1.5], 0.75
    moment, wanted = 0.0, []
    for number, weight in enumerate(path, 1):
        moment = decay * moment + (1 - decay) * weight
        wanted.append(moment / (1 - decay**number))
    found = averaged(path, start=100.0, decay=decay)
    assert found == pytest.approx(wanted, rel=1e-6)
    assert found[0] == path[0], "the first step's weights, to the bit: the start is forgotten"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_correction_it_is_torchs_own_average_from_the_start(dtype):
    layer = torch.nn.Linear(4, 3, bias=False)
    theirs = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    theirs.update_parameters(layer)  # its first call takes the weights as they are
    ema = Ema(Ema.Config(method="ema", decay=0.9, bias_correction=False))
    parameters = {"weight": torch.nn.Parameter(layer.weight.detach().to(dtype))}
    ema.on_train_begin(TrainingStep(0, 5, parameters))
    for step in range(1, 6):
        with torch.no_grad():
            layer.weight.add_(torch.full_like(layer.weight, 0.25 * step))
            parameters["weight"].copy_(layer.weight)
        theirs.update_parameters(layer)
        ema.on_step_end(TrainingStep(step, 5, parameters))
    ours = ema.weights("result")["weight"]
    assert ours.dtype is torch.float32
    exact = dtype is torch.float32
    torch.testing.assert_close(
        ours, theirs.module.weight.detach(), rtol=1e-6 if exact else 2e-2, atol=0 if exact else 2e-2
    )


def test_the_warm_up_is_diffusers_own():
    """diffusers' EMAModel.get_decay: 0 at first, then 1 - (1 + n / inv_gamma)^-power to decay."""
    path = [1.0, 2.0, 3.0, 4.0]
    decays = [0.0, *(min(0.6, 1 - (1 + n / 2.0) ** -1.0) for n in (1, 2, 3))]
    assert decays[1:] == pytest.approx([1 / 3, 1 / 2, 0.6])
    average, wanted = 0.0, []
    for decay, weight in zip(decays, path, strict=True):
        average = decay * average + (1 - decay) * weight
        wanted.append(average)
    found = averaged(path, decay=0.6, use_ema_warmup=True, inv_gamma=2.0, power=1.0)
    assert found == pytest.approx(wanted, rel=1e-6)


def test_until_it_begins_it_is_the_trained_weights():
    found = averaged([5.0, 6.0, 7.0, 8.0], decay=0.5, update_after_step=2)
    assert found == pytest.approx([5.0, 6.0, 7.0, (0.25 * 7 + 0.5 * 8) / 0.75])
    found = averaged([5.0, 6.0, 7.0], decay=0.5, update_after_step=2, bias_correction=False)
    assert found == pytest.approx([5.0, 6.0, 6.5]), "without correction it holds the weights before"


def test_an_average_that_never_begins_is_refused():
    ema = Ema(Ema.Config(method="ema", update_after_step=8))
    ((key, what, fix),) = ema.check(TrainSettings(max_steps=8))
    assert (key, fix) == (("update_after_step",), "lower it")
    assert what == "no step is averaged: the average begins after 8 steps of 8"
    assert not list(ema.check(TrainSettings(max_steps=9)))
    assert not list(ema.check(TrainSettings()))


@pytest.mark.parametrize(("settings", "said"), [
    ({"use_ema_warmup": True, "bias_correction": False}, "leaves no bias; drop bias_correction"),
    ({"inv_gamma": 2.0}, "inv_gamma is about use_ema_warmup"),
    ({"power": 1.0}, "power is about use_ema_warmup"),
])  # fmt: skip
def test_settings_without_effect_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Ema.Config(method="ema", **settings)


def test_it_holds_four_bytes_of_each_parameter():
    ema = Ema(Ema.Config(method="ema"))
    for dtype in (torch.float32, torch.bfloat16):
        parameter = torch.nn.Parameter(torch.zeros(3, 5, dtype=dtype))
        ema.on_train_begin(TrainingStep(0, 1, {"w": parameter}))
        (average,) = (v for v in ema.state().values() if isinstance(v, torch.Tensor))
        assert ema.state_bytes(parameter) == average.nbytes == 60


def test_a_long_average_stays_exact_in_float32():
    """10,000 steps of one value, a bfloat16 that changes no more: the average is that value."""
    found = averaged([1.0078125] * 2000, dtype=torch.bfloat16, start=7.0, decay=0.999)
    assert math.isclose(found[-1], 1.0078125, rel_tol=1e-6)
