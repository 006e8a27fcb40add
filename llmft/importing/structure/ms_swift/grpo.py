"""ms-swift's GRPO: its rewards, its losses, and what a step of it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmft.importing.configuration import Key
from llmft.importing.peer_translation import Translation
from llmft.importing.structure import arguments, online
from llmft.importing.tables import ends_of
from llmft.recipes.tree import visible

# swift/rewards/orm.py, 4.6.0. Its `boxed=True` is none of math-verify's words, and acts as none.
_REWARDS: Mapping[str, Mapping[str, Any]] = {
    "accuracy": {
        "method": "math_verify",
        "answer_tag": "answer",
        "boxed": "none",
        "extraction_mode": "first_match",
    },
    "format": {
        "method": "pattern",
        "pattern": r"<think>.*?</think>\s*<answer>.*?</answer>\Z",
    },
    "react_format": {
        "method": "pattern",
        "pattern": r"<think>.*?</think>\s*Action:.*?Action Input:",
    },
}
_COSINE = {
    "min_value_wrong": "cosine_min_len_value_wrong",
    "max_value_wrong": "cosine_max_len_value_wrong",
    "min_value_correct": "cosine_max_len_value_correct",
    "max_value_correct": "cosine_min_len_value_correct",
}
"""Its names say of which length a value is; those here are TRL's."""
_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")
_BY_ANSWER = ("grpo", "sapo")
"""The losses that are a mean over answers; ratios of whole answers go with these here."""


def method(t: Translation, loss: Key | None) -> None:
    """Write how answers are sampled, rewarded and learnt from (grpo_trainer.py, rlhf_args.py)."""
    for name in ("num_generations", "max_completion_length", "temperature", "top_p",
                 "num_iterations", "epsilon"):  # fmt: skip
        arguments.value(t, f"alignment.{name}", name)
    top_k, key = t.get("top_k"), t.key("top_k")
    if isinstance(top_k, int) and top_k > 0:
        t.set("alignment.top_k", top_k, key)
    elif key is not None:
        t.note("none", key, "all tokens may be drawn", block="alignment")
    for name in ("epsilon_high", "delta"):
        if (found := t.key(name)) is not None:
            t.set(f"alignment.{name}", arguments.number(found.value), found)
    _loss(t, loss)
    _advantages(t)
    arguments.value(t, "alignment.beta", "beta")
    if t.draft.get("alignment.beta"):
        why = f"{t.origin} does not weigh the KL by the ratio"
        t.set("alignment.use_bias_correction_kl", False, None, why)
        if not _has_liger(t):
            t.set("alignment.token_kl_max", 10.0, None, f"{t.origin} counts no more of a token")
    masked = t.key("overlong_filter")
    if masked is not None and masked.value is True and _has_liger(t):
        t.note("none", masked, "Liger's loss learns from them all", block="alignment")
    elif masked is not None and masked.value is True:
        t.set("alignment.mask_truncated_completions", True, masked)
    _dropout(t)
    _rewards(t)


def _loss(t: Translation, key: Key | None) -> None:
    name = "grpo" if key is None else str(key.value)
    if name not in _LOSSES:
        shown = visible(name)[:40]
        t.note("cannot", key, f"GRPO's loss '{shown}'", missing=f"loss_type {shown} of grpo")
        return
    why = "" if key is not None else f"the default of {t.origin}"
    t.set("alignment.loss_type", name, key, why)
    if name == "cispo" and t.key("epsilon_high") is None:
        epsilon: Any = t.get("epsilon")
        t.set("alignment.epsilon_high", epsilon, t.key("epsilon"), f"{t.origin} takes epsilon")
    for home, said in (("pos", "tau_pos"), ("neg", "tau_neg")):
        if (heat := t.key(said)) is None:
            continue
        if name == "sapo":
            t.set(f"alignment.sapo_temperature_{home}", arguments.number(heat.value), heat)
        else:
            t.note("none", heat, "acts with loss_type sapo only", block="alignment")
    level = t.key("importance_sampling_level")
    if level is None:
        return
    if level.value in ("token", "sequence") and (level.value == "token" or name in _BY_ANSWER):
        t.set("alignment.importance_sampling_level", level.value, level)
    else:
        what = f"ratios by '{visible(str(level.value))[:20]}' in the loss '{name}'"
        t.note("cannot", level, what, missing="importance_sampling_level")


def _advantages(t: Translation) -> None:
    scale, kind = t.key("scale_rewards"), t.key("advantage_estimator")
    if kind is not None and kind.value != "grpo":
        shown = visible(str(kind.value))[:40]
        t.note("cannot", kind, f"advantages by '{shown}'", missing=f"advantages by {shown}")
    elif kind is not None:
        t.note("none", kind, "it is the one here", block="alignment")
    if scale is None:
        return
    if scale.value in ("group", "batch", "none"):
        t.set("alignment.scale_rewards", scale.value, scale)
    else:
        what = f"rewards scaled by '{visible(str(scale.value))[:20]}'"
        t.note("cannot", scale, what, missing="scale_rewards")


def _dropout(t: Translation) -> None:
    """Leave dropout on, as it is there.

    _prepare_batch_inputs: the old likelihoods are always computed, and in training mode.
    """
    t.set("alignment.disable_dropout", False, None, f"{t.origin} leaves dropout on")
    if online.has_dropout(t):
        why = f"{t.origin} computes what an update is held against with dropout"
        t.set("alignment.old_logps_dropout", True, None, why)


def _rewards(t: Translation) -> None:
    """Write the rewards that ms-swift names; others are Python of the user's own."""
    key, weight_key = t.key("reward_funcs"), t.key("reward_weights")
    names = [] if key is None else key.value if isinstance(key.value, list) else [key.value]
    known = (*_REWARDS, "cosine", "repetition", "soft_overlong")
    unknown = [str(name) for name in names if name not in known]
    if unknown or not names:
        said = ", ".join(visible(name)[:40] for name in unknown)
        what = f"the reward '{said}'" if said else "no reward function is named"
        missing = f"reward {visible(unknown[0])[:40]}" if unknown else "no reward is named"
        t.note("cannot", key or "reward_funcs", what, missing=missing)
        return
    blocks = [_reward(t, str(name), key) for name in names]
    t.set("alignment.rewards", online.weights(t, blocks, weight_key), key)
    online.unlimited(t)


def _reward(t: Translation, name: str, key: Key | None) -> dict[str, Any]:
    """Return the block of one of ms-swift's rewards, with the flags that it reads."""
    longest: Any = t.draft.get("alignment.max_completion_length")
    if name == "repetition":
        size, penalty = t.get("repetition_n_grams"), t.get("repetition_max_penalty")
        return {"method": name, "ngram_size": size, "max_penalty": arguments.number(penalty)}
    if name == "soft_overlong":
        most, cache = t.get("soft_max_length") or longest, t.get("soft_cache_length")
        if cache is None:
            t.note(
                "cannot", key, "soft_overlong without soft_cache_length", missing="soft_overlong"
            )
        _refuse_beyond(t, t.key("soft_max_length"), most, longest)
        return {"method": name, "max_length": most, "cache_length": cache}
    if name == "cosine":
        most = t.get("cosine_max_len") or longest
        _refuse_beyond(t, t.key("cosine_max_len"), most, longest)
        values = {ours: arguments.number(t.get(theirs)) for ours, theirs in _COSINE.items()}
        return {**_REWARDS["accuracy"], "method": name, "max_len": most, **values}
    return dict(_REWARDS[name])


def _refuse_beyond(t: Translation, key: Key | None, most: Any, longest: Any) -> None:
    """Say that answers may be longer than a reward's length, beyond which its curve goes on."""
    if isinstance(most, int) and isinstance(longest, int) and most < longest:
        what = f"answers of more than {most} tokens, beyond which this reward is level here"
        t.note("cannot", key, what, missing="answers beyond a reward's length")


def prompts(t: Translation, facts: Mapping[str, Any], key: Key, *, questions: bool = False) -> bool:
    """Write rows of conversations as prompts; return whether they have what the rewards read.

    facts: `columns`, and the column of right answers, which ms-swift's rewards get as `solution`.
    questions: whether a row has a question in place of a conversation.
    """
    rewards: Any = t.draft.get("alignment.rewards") or []
    compared = any(block["method"] in ("math_verify", "cosine") for block in rewards)
    if compared and "answers" not in facts:
        what = "rows without a solution, which the reward reads"
        t.note("cannot", key, what, block="data", missing="rows without a solution")
        return False
    t.method("data", "prompts", key)
    if compared:
        t.set("data.columns.answers", facts["answers"])
    if questions:
        t.set("data.columns.prompt", "query", None, "as ms-swift calls a question")
        t.set("data.chat", True)
        return True
    t.set("data.columns.prompt", facts.get("columns", {}).get("messages", "messages"))
    t.set("data.remove_response", True, None, f"{t.origin} leaves out what an assistant says last")
    return True


def length(t: Translation) -> None:
    """Write the longest prompt with its answer.

    A longer prompt loses its start. Where the sampler has less room than that, it gives a shorter
    answer to a long prompt, which is refused here.
    """
    longest, most, mode = t.key("max_length"), t.key("vllm_max_model_len"), t.key("vllm_mode")
    rule, completion = t.key("truncation_strategy"), t.draft.get("alignment.max_completion_length")
    known = ends_of(str(t.draft.get("model.path") or ""))
    room: Any = known.positions if known is not None and known.positions else None
    if most is not None and mode is not None and mode.value == "colocate":
        room = most.value
    elif most is not None:
        t.note("none", most, "it acts in the sampler's own process only", block="train")
    if rule is not None and rule.value != "left":
        what = "a prompt that is too long is replaced by another one there"
        t.note("decide", rule, what, missing="truncation_strategy delete")
    if longest is None and room is None:
        what = "the longest prompt is what the model can take; write max_length"
        t.note("decide", "max_length", what, block="train", missing="max_length not stated")
        return
    if not isinstance(completion, int):
        return
    total = longest.value + completion if longest and isinstance(longest.value, int) else None
    if total is not None and (room is None or total <= room):
        why = f"prompts of {longest.value if longest else ''} tokens, and their answers"
        t.set("train.max_length", total, longest, why)
        t.set("train.on_long_row", "truncate", rule, "a longer prompt loses its start")
        return
    key = most if most is not None and room == most.value else longest
    why = "the room of a prompt and its answer"
    t.set("train.max_length", room, key, why)
    why = "a prompt that leaves an answer less room gets a shorter one there"
    t.set("train.on_long_row", "fail", None, why)
    for unused in (longest, most):
        if unused is not None and unused is not key:
            t.note("none", unused, "the sampler has less room", block="train")


def step(t: Translation) -> None:
    """Write what a step is, and refuse losses that then come to something else."""
    generations: Any = t.draft.get("alignment.num_generations")
    if not isinstance(generations, int) or generations < 1:
        return
    count = online.sampling(t, generations, 1)
    if not count:
        return
    online.whole_steps(t, count)
    loss, key = t.draft.get("alignment.loss_type"), t.key("loss_type")
    masked = t.draft.get("alignment.mask_truncated_completions") is True
    spread = t.draft.get("alignment.steps_per_generation") is not None
    if loss in ("dapo", "cispo") and (masked or spread):
        what = f"'{loss}' divides by all tokens that were sampled, not by those that count"
        t.note("cannot", key, what, missing="what the loss is divided by")
    if loss in ("dapo", "cispo"):
        if _has_liger(t) or t.get("sequence_parallel_size") not in (None, 1):
            what = f"'{loss}' divided by other tokens: those of a pass of Liger's, or a group's"
            t.note("cannot", key, what, missing="what the loss is divided by")
        _passes(t)
    rows = t.draft.get("train.per_device_train_batch_size")
    if loss == "bnpo" and rows != t.get("per_device_train_batch_size"):
        what = f"'bnpo' depends on how many answers a forward pass has: here {rows}"
        t.note("decide", key, what, missing="bnpo and the forward passes")


def _has_liger(t: Translation) -> bool:
    """Return whether the loss is Liger's: compute_liger_loss clamps no KL and masks no answer."""
    return t.get("use_liger_kernel") is True


def _passes(t: Translation) -> None:
    """Write what acts the same on gradients that are a number of times as large here.

    grpo_trainer.py divides these losses by the tokens of all passes, and transformers' trainer
    again by the number of passes: SwiftMixin.__init__ lets it, where TRL's own keeps it from that.
    """
    passes: Any = t.get("gradient_accumulation_steps") or 1
    if passes == 1:
        return
    key, optim = t.key("gradient_accumulation_steps"), str(t.get("optim"))
    if not optim.startswith("adamw"):
        what = f"{t.origin} divides the loss by {passes} passes again, and by its tokens"
        t.note("cannot", key, what, missing=f"a loss divided by passes, with {optim[:40]}")
        return
    for name in ("max_grad_norm", "adam_epsilon"):
        value = arguments.number(t.get(name))
        t.taken.add(name)
        if isinstance(value, int | float):
            why = f"{value:g} there, where gradients are divided by {passes} passes again"
            t.set(f"train.{name}", value * passes, t.key(name), why)
