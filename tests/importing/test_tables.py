"""The tables: complete for what is installed here, true to its defaults, and read by code."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from llmft.importing import structure
from llmft.importing.tables import PEERS, known_keys, table

FILES = sorted(Path(structure.__path__[0]).rglob("*.py"))
SHARED = ("arguments", "forms", "online", "weights")


def code_of(peer: str) -> str:
    """Return the code that translates a peer, with what several share."""
    name = peer.replace("-", "_")
    own = [path for path in FILES if name in (path.stem, path.parent.name) or path.stem in SHARED]
    return "\n".join(path.read_text("utf-8") for path in own)


@pytest.mark.parametrize("peer", PEERS)
def test_a_key_that_code_reads_is_named_in_the_code(peer):
    code = code_of(peer) + (code_of("trl") if peer == "alignment-handbook" else "")
    for name, rule in table(peer).keys.items():
        last = name.removesuffix(".*").removesuffix("[]").rpartition(".")[2].removesuffix("[]")
        if rule.by:
            found = (f'"{name}"', f'"{last}"', f'"{last}.', f'.{last}"')
            assert any(spelling in code for spelling in found), name


@pytest.mark.parametrize("peer", PEERS)
def test_every_peer_is_known_by_keys_of_its_table(peer):
    names = {name.split(".")[0].split("[")[0] for name in table(peer).keys}
    for keys in known_keys()[peer]:
        assert set(keys) <= names


@pytest.fixture(scope="module")
def trl_configs():
    from trl import (
        DPOConfig,
        GRPOConfig,
        ModelConfig,
        RewardConfig,
        RLOOConfig,
        ScriptArguments,
        SFTConfig,
    )
    from trl.experimental.kto import KTOConfig

    return {
        "sft": SFTConfig, "dpo": DPOConfig, "reward": RewardConfig, "kto": KTOConfig,
        "grpo": GRPOConfig, "rloo": RLOOConfig, "model": ModelConfig, "script": ScriptArguments,
    }  # fmt: skip


def test_every_key_of_the_installed_trl_is_in_its_table(trl_configs):
    known = table("trl")
    fields = {field.name for config in trl_configs.values() for field in dataclasses.fields(config)}
    assert sorted(name for name in fields if known.rule(name) is None) == []


# None there, and then true, or the weight in the model's config.
RESOLVED = {("bf16", None), ("router_aux_loss_coef", None)}


def test_the_defaults_in_the_table_are_those_of_the_installed_trl(trl_configs):
    rules = table("trl")
    compared = 0
    for trainer, config in trl_configs.items():
        for field in dataclasses.fields(config):
            rule = rules.rule(field.name)
            stated = rule.defaults.get(trainer, rule.default)
            if stated is None or (field.name, field.default) in RESOLVED:
                continue
            found = field.default
            if found is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
                found = field.default_factory()
            assert stated == found, (trainer, field.name)
            compared += 1
    assert compared > 150


def test_pefts_own_choice_of_layers_is_the_installed_one():
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as choices

    from llmft.importing.structure.weights import _PEFT_TARGETS

    assert {name: choices[name] for name in _PEFT_TARGETS} == _PEFT_TARGETS
