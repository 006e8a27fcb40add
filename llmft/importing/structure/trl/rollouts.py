"""TRL's GRPO and RLOO: how answers are sampled and rewarded, and what a step is."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from llmft.importing.peer_translation import Translation
from llmft.importing.structure import arguments, online
from llmft.recipes.tree import visible


def sampled(t: Translation) -> None:
    """Write how answers are sampled and rewarded."""
    arguments.value(t, "alignment.beta", "beta")
    loss_type = t.key("loss_type")
    if t.trainer == "grpo":
        why = "" if loss_type else f"the default of {t.origin}"
        t.set("alignment.loss_type", loss_type.value if loss_type else "dapo", loss_type, why)
    for name in (
        "num_generations",
        "max_completion_length",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "num_iterations",
        "epsilon",
        "epsilon_high",
        "delta",
        "scale_rewards",
        "importance_sampling_level",
        "mask_truncated_completions",
        "use_bias_correction_kl",
        "multi_objective_aggregation",
        "off_policy_mask_threshold",
        "normalize_advantages",
        "reward_clip_range",
        "sapo_temperature_neg",
        "sapo_temperature_pos",
        "vespo_k_neg",
        "vespo_k_pos",
        "vespo_lambda_neg",
        "vespo_lambda_pos",
    ):
        found = t.get(name)
        neutral = {"repetition_penalty": 1.0, "mask_truncated_completions": False, "top_k": 0}
        if found is None or (name in neutral and found == neutral[name]):
            continue
        arguments.value(t, f"alignment.{name}", name)
    for name, neutral_value in (("top_entropy_quantile", 1.0), ("entropy_coef", 0.0)):
        if (found := t.key(name)) is not None and found.value != neutral_value:
            t.set(f"alignment.{name}", found.value, found)
    if t.key("disable_dropout") is None:
        t.set("alignment.disable_dropout", False, None, f"the default of {t.origin}")
    rewards(t)


def step(t: Translation) -> None:
    """Write what a step is: TRL counts answers, and an update of it may have parts of groups."""
    generations = t.get("num_generations")
    if not isinstance(generations, int) or generations < 1:
        return
    prompts = online.sampling(t, generations, 1)
    if not prompts:
        return
    online.whole_steps(t, prompts)
    computed = online.updates_of(t) > 1 or t.get("use_vllm") is True or t.trainer == "rloo"
    if computed and online.has_dropout(t) and not t.draft.get("alignment.disable_dropout"):
        # _generate_and_score_completions: without gradients, in training mode.
        why = f"{t.origin} computes what an update is held against with dropout"
        t.set("alignment.old_logps_dropout", True, None, why)


# TRL's own functions by name (trl/rewards, 1.16); another one is a dotted name: module.function.
# accuracy_reward leaves out a row whose right answer cannot be read: it adds nothing, as 0 does.
_OWN_REWARDS: dict[str, dict[str, Any] | None] = {
    "accuracy_reward": {"method": "math_verify"},
    "think_format_reward": {"method": "pattern", "pattern": "<think>(?!.*<think>).*?</think>"},
    "reasoning_accuracy_reward": None,
    "get_soft_overlong_punishment": None,
}


def rewards(t: Translation) -> None:
    """Write TRL's own reward functions, and those in Python files, which run with --trust only."""
    key, model = t.key("reward_funcs"), t.key("reward_model_name_or_path")
    weight_key = t.key("reward_weights")
    found = [] if key is None else key.value if isinstance(key.value, list) else [key.value]
    own = [_OWN_REWARDS.get(str(name)) for name in found]
    if model is None and own and all(own):
        blocks = [dict(one) for one in own if one is not None]
        t.set("alignment.rewards", online.weights(t, blocks, weight_key), key)
        online.unlimited(t)
        return
    files = [_file_of(t, str(name)) for name in found]
    if model is not None or not found or None in files:
        said = ", ".join(visible(str(name))[:60] for name in found)
        t.note(
            "cannot",
            key or model or "reward_funcs",
            f"a reward function of Python ({said})" if said else "a reward function of Python",
            missing="reward functions in Python",
        )
        return
    blocks = [
        {"method": "python", "file": one[0], "function": one[1]} for one in files if one is not None
    ]
    why = "it runs only with --trust file:FILE"
    t.set("alignment.rewards", online.weights(t, blocks, weight_key), key, why)
    t.note(
        "decide",
        key,
        "TRL gives a function all other columns of a row: name those that it reads as"
        " data.reward_columns",
        block="data",
        missing="the columns that a reward function reads",
    )


def _file_of(t: Translation, name: str) -> tuple[str, str] | None:
    """Return the file and function of a dotted name, where the file lies beside the configuration.

    As TRL finds it from the folder that it is started in.
    """
    module, _, function = name.rpartition(".")
    if not module or name in _OWN_REWARDS or "/" in name:
        return None
    path = PurePath(*module.split(".")).with_suffix(".py")
    for folder in (Path(t.configuration.folder), Path()):
        if (folder / path).is_file():
            return str(folder / path), function
    return None
