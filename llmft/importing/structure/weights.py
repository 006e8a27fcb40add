"""The base's weights and what is trained of them: types, attention code, LoRA's targets."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmft.importing.configuration import Key
from llmft.importing.peer_translation import Translation
from llmft.importing.structure import arguments
from llmft.recipes.tree import visible
from llmft.system.architectures import architecture_of

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16"}


def named(dtype: str) -> str:
    """Return what a recipe calls a type."""
    plain = dtype.removeprefix("torch.")
    return _DTYPES.get(plain, plain)


_STORED = re.compile(
    r"(?:^|[-_/.])(awq|gptq|aqlm|hqq|eetq|fp8|nvfp4|mxfp4|gguf|[48]bit-mlx)(?:$|[-_/.])",
    re.IGNORECASE,
)


def stored_otherwise(t: Translation) -> None:
    """Say that a base's own files hold weights of a kind that is not trained on here."""
    path = str(t.draft.get("model.path") or "")
    if found := _STORED.search(path.rpartition("/")[2]):
        entry = t.draft.entry("model.path")
        key = entry.flag if entry is not None and isinstance(entry.flag, Key) else None
        what = f"a base stored by {found[1].upper()}"
        t.note("cannot", key or "model.path", what, block="model", missing=what)


_MIXTURE = re.compile(
    r"moe|mixtral|\b[aA]\d+(?:\.\d+)?[bB]\b|jamba|gpt-oss|dbrx|arctic|minimax|scout|maverick"
    r"|deepseek-(?:v[23]|r1(?:$|-0528$))|glm-4\.[56]|kimi",
    re.IGNORECASE,
)
_WITHOUT_SHARED = re.compile(r"mixtral|qwen3-[\d.]+b-a\d", re.IGNORECASE)
EXPERTS = r".*\.experts\.(gate_up_proj|down_proj)"


def experts(t: Translation) -> None:
    """Leave a mixture's experts out where the peer's "every linear layer" has none of them.

    transformers 5 stacks them into parameters, which are no linear layers. PEFT 0.19 gives them an
    update only where a list of names has those that they had (transformers_weight_conversion.py),
    as it may where experts that all tokens share have the same names.
    """
    path = str(t.draft.get("model.path") or "").rpartition("/")[2]
    asked = t.draft.get("adapter.target_modules")
    every = asked == "all-linear" or (isinstance(asked, list) and "all-linear" in asked)
    if not every or not _MIXTURE.search(path) or t.draft.get("adapter.exclude_modules"):
        return
    entry = t.draft.entry("adapter.target_modules")
    key = entry.flag if entry is not None and isinstance(entry.flag, Key) else None
    if _WITHOUT_SHARED.search(path) and t.table.peer in ("axolotl", "trl"):
        why = "experts are no linear layers in transformers 5, and get no update there"
        t.set("adapter.exclude_modules", EXPERTS, None, why)
        return
    t.note(
        "decide",
        key or "target_modules",
        "all-linear means the experts here too, and there it depends on the versions: leave them"
        f" out with exclude_modules: '{EXPERTS}'",
        block="adapter",
        missing="whether experts get an update",
    )


def dtype(t: Translation, name: str, key: Key | None) -> None:
    """Write the type of the base's weights; 'auto' is the checkpoint's own."""
    t.set("model.dtype", named(name), key, "" if key else arguments.unstated(t, "dtype"))


def attention(t: Translation, name: str = "attn_implementation") -> str:
    """Tell of the peer's attention code; here the padding-free one is taken where it can be."""
    key = t.key(name)
    if key is None:
        return ""
    kind = str(key.value)
    if kind in ("eager", "sdpa"):
        t.note(
            "none", key, "the same numbers, up to rounding, as the attention here", block="model"
        )
    elif re.search(r"flash|fa[23]|flex|xformers|sage|auto|disabled", kind):
        t.note(
            "speed",
            key,
            "another attention kernel; here rows are padding-free in any case",
            block="model",
        )
    else:
        t.note(
            "cannot",
            key,
            f"attention code '{visible(kind)[:60]}'",
            block="model",
            missing=f"attention {visible(kind)[:60]}",
        )
    return kind


# PEFT 0.21's TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, for the families known here.
_PEFT_TARGETS = {
    "llama": ["q_proj", "v_proj"],
    "mistral": ["q_proj", "v_proj"],
    "mixtral": ["q_proj", "v_proj"],
    "qwen2": ["q_proj", "v_proj"],
    "qwen3": ["q_proj", "v_proj"],
    "gemma": ["q_proj", "v_proj"],
    "gemma2": ["q_proj", "v_proj"],
    "gemma3_text": ["q_proj", "v_proj"],
    "opt": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "gpt_neox": ["query_key_value"],
    "bloom": ["query_key_value"],
    "falcon": ["query_key_value"],
    "phi": ["q_proj", "v_proj", "fc1", "fc2"],
}


def targets(
    t: Translation, name: str, *, every: Sequence[str] = ("all-linear",), joins: bool = False
) -> None:
    """Write which layers get an update; PEFT's own choice for the family where none is named.

    every: the peer's words for every linear layer but the last. joins: whether such a word may
    stand beside names, as PEFT itself does not read it.
    """
    key = t.key(name)
    found = key.value if key else None
    if isinstance(found, str) and found not in every:
        listed = [part.strip() for part in found.split(",")] if "," in found else [found]
        if len(listed) == 1 and re.search(r"[*+?()\\|\[\]^$]", found):
            t.set("adapter.target_modules", found, key)
            return
        found = listed
    if isinstance(found, list) and len(found) == 1 and found[0] in every:
        found = found[0]
    listed = [str(one) for one in found] if isinstance(found, list) else []
    words = {one for one in listed if one in every or one.startswith("all-")}
    if words and not (joins and words <= set(every)):
        what = "every linear layer, and others beside them"
        t.note("cannot", key, what, block="adapter", missing="all-linear beside other modules")
        return
    if isinstance(found, str):
        t.set("adapter.target_modules", "all-linear", key)
    elif found:
        t.set("adapter.target_modules", [str(one) for one in found], key)
    else:
        path = str(t.draft.get("model.path") or t.get("model_name_or_path") or "")
        family = architecture_of(path)
        chosen = _PEFT_TARGETS.get(family.model_type) if family else None
        if chosen is None:
            t.note(
                "decide",
                key or name,
                f"PEFT chooses the layers by the architecture; that of"
                f" '{visible(path)[:80]}' is not known here",
                missing=f"{name} not stated",
                block="adapter",
            )
        else:
            assert family is not None
            why = f"{name}: not stated; PEFT's choice for {family.model_type}"
            t.set("adapter.target_modules", chosen, None, why)


def adapter_in_bfloat16(t: Translation, key: Key | None, why: str) -> None:
    """Let the adapter's own weights be bfloat16, as they are where the peer says why."""
    if not t.set("adapter.pure_bf16", True, key, why):
        t.note("decide", key, why, block="adapter", missing="the adapter's weights in bfloat16")


def continued(t: Translation, name: str, *, below: bool = False) -> None:
    """Let training go on with the adapter that a key names, as SFT does.

    below: it is merged, and a new adapter stands on it; a recipe cannot say that of one of PEFT's.
    """
    if (key := t.key(name)) is None:
        return
    said = key.value if isinstance(key.value, list) else str(key.value).split(",")
    peft = t.draft.get("adapter.method") in ("lora", "qlora", "dora")
    if below or len(said) != 1 or t.trainer != "sft" or not peft:
        t.note("cannot", key, "an adapter below a new one, or below a reference",
               missing="training goes on with an adapter of another tool")  # fmt: skip
        return
    why = "the adapter's own settings hold there; the adapter block has to describe them"
    t.draft.set("stage.start_from", f"peft:{str(said[0]).strip()}", key, why)


def full(t: Translation, key: Key | None, why: str = "") -> None:
    """Choose full fine-tuning."""
    t.method("adapter", "full", key, why)


def weights_of_full(t: Translation, sharding: Key | None) -> None:
    """Say whether bfloat16 weights are trained themselves: so it is in a Trainer by itself.

    sharding: the key of DeepSpeed or of FSDP, both of which keep float32 copies beside them.
    """
    if t.draft.get("adapter.method") != "full":
        return
    if t.draft.get("model.dtype") == "auto" and sharding is None:
        what = f"of a bfloat16 checkpoint {t.table.title} trains the bfloat16 weights themselves"
        t.note("decide", None, what, block="adapter", missing="dtype auto of all weights")
        return
    if t.draft.get("model.dtype") != "bfloat16":
        return
    if sharding is None:
        why = f"{t.table.title} trains the bfloat16 weights themselves"
        t.set("adapter.pure_bf16", True, None, why)
    else:
        what = "the launcher's sharding keeps float32 copies of the weights, as is the default here"
        t.note("none", None, what, block="adapter")
