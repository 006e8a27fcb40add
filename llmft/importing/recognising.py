"""Whose configuration a file is, and by what it trains, where nobody says so."""

from __future__ import annotations

import re

from llmft.api.errors import Place, RecipeError
from llmft.importing.configuration import Configuration
from llmft.importing.tables import PEERS, known_keys

_WORDS = ("sft", "dpo", "orpo", "kto", "grpo", "rloo", "reward", "cpo")
# Keys that only one of TRL's trainers has.
_TELLING = (
    ("grpo", ("reward_funcs", "num_generations")),
    ("kto", ("desirable_weight", "undesirable_weight")),
    ("reward", ("center_rewards_coefficient",)),
    ("dpo", ("precompute_ref_log_probs", "f_divergence_type", "beta")),
    ("sft", ("packing", "max_seq_length", "dataset_text_field", "assistant_only_loss")),
)


def peer_of_script(script: str) -> str:
    """Return whose program a command starts, or '' where its name does not say."""
    if script.startswith(("trl ", "swift ")):
        return "ms-swift" if script.startswith("swift ") else "trl"
    if re.search(r"(?:^|/)(?:trl/scripts|examples/scripts)/", script):
        return "trl"
    if re.search(r"(?:^|/)unsloth-cli\.py$", script):
        return "unsloth"
    return ""


def peer_of(configuration: Configuration) -> str:
    """Return the peer whose keys a configuration has; RecipeError where none or several fit."""
    if configuration.script and (peer := peer_of_script(configuration.script)):
        return peer
    heads = {re.split(r"[.\[]", name)[0] for name in configuration.keys}
    found = []
    for peer, lists in known_keys().items():
        sets = [set(names) for names in lists]
        best = max((len(names) for names in sets if names <= heads), default=0)
        if best:
            found.append((best, peer))
    if not found:
        what = "the keys are those of no tool that is known here"
        fix = f"name it: --peer {', '.join(PEERS)}"
        raise RecipeError("E091", what, fix=fix, place=Place(configuration.file))
    most = max(best for best, _ in found)
    fitting = [peer for best, peer in found if best == most]
    if len(fitting) > 1:
        what = f"the keys may be those of {' or '.join(fitting)}"
        raise RecipeError(
            "E091", what, fix=f"name it: --peer {fitting[0]}", place=Place(configuration.file)
        )
    return fitting[0]


def trainer_of(configuration: Configuration, peer: str) -> str:
    """Return TRL's or the handbook's trainer; '' for peers whose files say it themselves."""
    if peer not in ("trl", "alignment-handbook"):
        return configuration.trainer
    if configuration.trainer:
        return configuration.trainer
    for part in reversed(re.split(r"[\\/._-]+", configuration.file.lower())):
        if part in _WORDS:
            return part
    for trainer, names in _TELLING:
        if any(name in configuration.keys for name in names):
            return trainer
    what = "the file does not say by which trainer it is read"
    raise RecipeError(
        "E091", what, fix=f"say it: --trainer {', '.join(_WORDS)}", place=Place(configuration.file)
    )
