"""Groups of answers that are given, a sampler that has them, and a stage of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from llmft_alignments.grpo.objective import GroupObjective
from llmft_alignments.grpo.rollouts import GroupSampler
from llmft_alignments.online.diagnostics import Diagnostics
from llmft_rewards.format import Format
from llmft_rewards.length import Length

from llmft.api import Answer, EncodedPrompt
from llmft.modeling import attention
from llmft.modeling.tiny_models import tiny_llama, tiny_tokenizer
from llmft.testing import measures
from tests.composed import composed

GENERATIONS = 4
TEXTS = ["abc", "one two", "a", "b c d e", "xy", "zz top", "hello you there", "q"]
"""Answers to two prompts; all but the third and the sixth have an end."""
REWARDS = [
    {"method": "length", "target": 2},
    {"method": "format", "max_words": 1, "weight": 0.4},
]
FUNCTIONS = {"length": Length, "format": Format}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with measures.one_thread():
        yield


def prompts() -> list[EncodedPrompt]:
    tokenizer = tiny_tokenizer(pad=True)
    found = []
    for text in ("ask:", "say it"):
        ids = tuple(tokenizer(text, add_special_tokens=False).input_ids)
        found.append(EncodedPrompt(ids, (-100,) * len(ids), "row", text, ()))
    return found


def answers() -> list[Answer]:
    tokenizer = tiny_tokenizer(pad=True)
    found = []
    for place, text in enumerate(TEXTS):
        ids = list(tokenizer(text, add_special_tokens=False).input_ids)
        ended = place not in (2, 5)
        found.append(Answer(ids + [tokenizer.eos_token_id] * ended, [], ended))
    return found


def model_of(seed: int = 0, packed: bool = True):
    """Return a tiny model that finds some tokens much likelier than others."""
    model = tiny_llama(seed)
    if packed:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model


def moved(model, size: float = 0.02) -> None:
    """Change a model's weights, each time in the same way."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def made_by(config) -> object:
    functions = FUNCTIONS[config.method]
    return functions(functions.Config.model_validate(config.model_dump()))


def objective_of(method, model=None, reference=None, **options):
    """Return a method's objective, whose sampler gives the answers above."""
    block = {"method": method.method, "num_generations": GENERATIONS, "max_completion_length": 20}
    blocks = [FUNCTIONS[one["method"]].Config.model_validate(one) for one in REWARDS]
    config = method.Config.model_validate({**block, **options, "rewards": blocks})
    return objective_from(method(config), model, reference)


def objective_from(alignment, model=None, reference=None, function=made_by):
    """Return the objective of an alignment, whose sampler gives the answers above."""
    config = alignment.config
    context = composed(
        model=model, reference_model=lambda: reference, tokenizer=tiny_tokenizer(pad=True),
        shares_prompts=True, starts_as_reference=False, reward_function=function,
        decode=lambda ids, *_, **__: answers()[: len(ids)],
        train=SimpleNamespace(bf16=False), note=lambda text: None,
    )  # fmt: skip
    rule = alignment.rule()
    sampler = GroupSampler(config, context, rule.needs_logps)
    return GroupObjective(config, rule, sampler, Diagnostics(lambda text: None), seed=5)
