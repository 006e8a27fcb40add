"""An online objective is held against its contract before the loop trusts it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmft.api import OnlineObjective
from llmft.api.errors import PluginError
from llmft.training.checked import ONLINE, CheckedObjective, CheckedOnlineObjective


class Right:
    """An online objective that gives what is wanted; `wrong` replaces one answer."""

    items_per_prompt = 2

    def __init__(self, **wrong: Any) -> None:
        self.wrong = wrong

    def _gives(self, name: str, right: Any) -> Any:
        return self.wrong.get(name, right)

    def weight(self, batch):
        return 1.0

    def loss(self, model, batch):
        raise NotImplementedError

    def sample_rollouts(self, prompts, numbers, step, stopping):
        return self._gives("sample_rollouts", [0] * 2 * len(prompts))

    def updates(self, items, step):
        return self._gives("updates", [range(items)])

    def should_continue(self, means):
        return True

    def step_metrics(self):
        return self._gives("step_metrics", {"reward": (1.0, 2.0)})

    def state(self):
        return self._gives("state", {"drawn": 3})

    def restore(self, state):
        pass


class Measured(Right):
    """An objective whose metric is as it is given."""

    def loss(self, model, batch):
        return torch.ones((), requires_grad=True) * 2, {"margin": self.wrong["margin"]}


@pytest.mark.parametrize("margin", [1.5, torch.tensor(1.5)])
def test_a_metric_is_a_number_or_a_scalar_tensor(margin):
    _, metrics = CheckedObjective(Measured(margin=margin), "method").loss(None, [])
    assert float(metrics["margin"]) == 1.5


@pytest.mark.parametrize("margin", ["1.5", torch.ones(2), True, ("1.5", 2.0), (1.5, 2.0, 3.0)])
def test_any_other_metric_is_named(margin):
    with pytest.raises(PluginError, match="the metric 'margin' is"):
        CheckedObjective(Measured(margin=margin), "method").loss(None, [])


@pytest.mark.parametrize("count", [0.0, -1.0, "2", float("nan")])
def test_a_metric_over_no_items_is_named(count):
    with pytest.raises(PluginError, match=r"the metric 'margin' is over .* above 0 is wanted"):
        CheckedObjective(Measured(margin=(1.5, count)), "method").loss(None, [])


def asked(**wrong: Any) -> None:
    """Ask a checked objective for all that a step asks for."""
    objective = CheckedOnlineObjective(Right(**wrong), "method")
    items = objective.sample_rollouts(["a", "b"], range(2), 0, lambda: False)
    list(objective.updates(len(items), 0))
    objective.step_metrics()
    objective.state()


def test_what_must_be_there_is_what_the_protocol_names():
    named = {name for name in vars(OnlineObjective) if not name.startswith("_")}
    assert set(ONLINE) == named - {"weight", "loss", "items_per_prompt", "rates_per_step"}


def test_an_objective_that_is_right_passes():
    asked()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("sample_rollouts", None, "'sample_rollouts' gives None items of 2 prompts; 4 are wanted"),
        ("sample_rollouts", [0], "'sample_rollouts' gives 1 items of 2 prompts; 4 are wanted"),
        ("updates", None, "'updates' returns None"),
        ("updates", [], "'updates' gives no update"),
        ("updates", [[0, 4]], "'updates' names the item 4 of 4"),
        ("step_metrics", {"reward": 1.0}, "'step_metrics' gives 1.0"),
        ("step_metrics", {"reward": (1.0, 0)}, "'step_metrics' gives"),
        ("state", None, "'state' returns None"),
        ("state", {"drawn": object()}, "'state' is no JSON"),
        ("state", {"mean": float("nan")}, "'state' is no JSON"),
    ],
)
def test_what_an_online_objective_gives_wrong_is_told(name, value, said):
    with pytest.raises(PluginError) as caught:
        asked(**{name: value})
    assert caught.value.faults[0].code == "E502"
    assert said in caught.value.faults[0].what


def test_an_online_objective_must_say_how_many_items_it_draws():
    wrong = Right()
    wrong.items_per_prompt = None
    with pytest.raises(PluginError, match="'items_per_prompt' is None"):
        CheckedOnlineObjective(wrong, "method")


def test_how_often_the_rate_moves_is_once_unless_an_objective_says_more():
    assert CheckedOnlineObjective(Right(), "method").rates_per_step == 1
    more = Right()
    more.rates_per_step = 3
    assert CheckedOnlineObjective(more, "method").rates_per_step == 3
    more.rates_per_step = 0
    with pytest.raises(PluginError, match="'rates_per_step' is 0"):
        CheckedOnlineObjective(more, "method")
