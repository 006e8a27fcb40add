"""What looks like a secret: never accepted in a recipe, never printed."""

from __future__ import annotations

import re
import shlex
from typing import Any

from llmft.recipes.tree import KeyPath, Tree

_ANY = "write nothing here; set it in the environment"
_HUB = "write nothing here; log in with `hf auth login`, or set HF_TOKEN in the environment"
_WANDB = "write nothing here; log in with `wandb login`, or set WANDB_API_KEY in the environment"
_URL = "write the address without user and password; keep them in ~/.netrc or the environment"

_EDGE = r"(?<![A-Za-z0-9])"
_SHAPES = [
    # At least one digit or capital: `hf_internaltestingmodels` is a name, not a token.
    (re.compile(_EDGE + r"hf_(?=[A-Za-z]*[0-9A-Z])[A-Za-z0-9]{16,}"), "a Hugging Face token", _HUB),
    (re.compile(_EDGE + r"api_org_[A-Za-z0-9]{16,}"), "a Hugging Face token", _HUB),
    (re.compile(_EDGE + r"wandb_v\d_[A-Za-z0-9_]{16,}"), "a wandb key", _WANDB),
    (re.compile(_EDGE + r"sk-(?=[\w-]*\d)[A-Za-z0-9_-]{16,}"), "an API key", _ANY),
    (re.compile(_EDGE + r"(?:AKIA|ASIA)[A-Z0-9]{16}"), "an AWS key", _ANY),
    (re.compile(_EDGE + r"(?:gh[pousr]_\w{20,}|github_pat_\w{20,})"), "a GitHub token", _ANY),
    (re.compile(_EDGE + r"(?:glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,})"), "a token", _ANY),
    (re.compile(_EDGE + r"AIza[\w-]{30,}"), "a Google key", _ANY),
    (re.compile(_EDGE + r"eyJ[\w-]{10,}\.[\w-]{10,}"), "a token", _ANY),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), "a private key", _ANY),
    (re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"), "a password in an address", _URL),
]  # fmt: skip
_HEX40 = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{40}(?![0-9A-Za-z])")
# ${UPPER_CASE} only: `{field}` and `${field}` are a dataset's own placeholders.
_VARIABLE = re.compile(r"\$\{([A-Z_][A-Z0-9_]*)[^}]*\}")
_COMMIT_KEY = re.compile(r"revision|commit|sha|hash|digest|checksum", re.IGNORECASE)

_KEY = (
    r"(?:[\w-]*[_-])?(?:(?:api|access|secret|private|auth)[_-]?key"
    r"|(?:token|password|passwd|passphrase|secret|credentials?))"
)
_KEY_NAME = re.compile(_KEY, re.IGNORECASE)
_PASSWORD_NAME = re.compile(r".*(?:password|passwd|passphrase|secret)", re.IGNORECASE)
# The tokenizer's own tokens are no secrets: pad_token, eos_token ... and values such as <pad>.
_SPECIAL_TOKEN = re.compile(
    r"(?:\w+_)?(?:pad|eos|bos|unk|mask|sep|cls|stop|end|start|image|special|eot|eom|init|virtual)"
    r"_token",
    re.IGNORECASE,
)
_ASSIGNMENT = re.compile(
    rf"(?<![\w-])({_KEY})([\"']?\s*[:=]\s*)([^\s,}}\]][^,}}\]]*)", re.IGNORECASE
)


def secret_in(key: str, value: Any) -> tuple[str, str] | None:
    """Return what a value looks like and the suggested fix, or None if it is no secret."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    if isinstance(value, str):
        for shape, name, fix in _SHAPES:
            if shape.search(value):
                return name, fix
        if _HEX40.fullmatch(value) and not _COMMIT_KEY.search(key):
            return "a wandb key", _WANDB
        if not value or re.fullmatch(r"[<\[].*[>\]]", value):
            return None
    if _KEY_NAME.fullmatch(key) and not _SPECIAL_TOKEN.fullmatch(key):
        if isinstance(value, int) and not _PASSWORD_NAME.match(key):
            return None
        return "a secret", _WANDB if "wandb" in key else _HUB if "h" in key[:3] else _ANY
    return None


def masked(text: str, known: tuple[str, ...] = ()) -> str:
    """Return a line with everything that looks like a secret as asterisks, lengths kept."""
    for value in known:
        text = text.replace(value, "*" * len(value))
    for shape, _, _ in _SHAPES:
        text = shape.sub(lambda match: "*" * len(match.group()), text)
    if not _COMMIT_KEY.search(text):
        text = _HEX40.sub("*" * 40, text)
    return text


def masked_source(text: str, known: tuple[str, ...] = ()) -> str:
    """Return a source line or a flag masked, values of key-like names included."""

    def hide(match: re.Match[str]) -> str:
        if _SPECIAL_TOKEN.fullmatch(match[1]):
            return match[0]
        return match[1] + match[2] + "*" * len(match[3])

    return _ASSIGNMENT.sub(hide, masked(text, known))


def refuse_secrets(tree: Tree) -> tuple[str, ...]:
    """Note a fault for every secret and every ${VARIABLE} in a tree; return the secrets' texts."""
    found: list[str] = []

    def visit(path: KeyPath, value: Any) -> None:
        key = next((part for part in reversed(path) if isinstance(part, str)), "")
        if secret := secret_in(key, value):
            name, fix = secret
            found.append(str(value))
            tree.report("E050", path, f"this looks like {name}, which must not be in a recipe", fix)
        elif isinstance(value, str) and (match := _VARIABLE.search(value)):
            what = f"'${{{match[1]}}}' is not expanded: a recipe is not a template"
            flag = f'--set {shlex.quote(".".join(map(str, path)))}="${match[1]}"'
            tree.report("E051", path, what, f"write the value, or pass {flag}")

    tree.walk(visit)
    # A short one would blot out half of every message; the line that holds it is masked anyway.
    return tuple(sorted({text for text in found if len(text) > 5}, key=len, reverse=True))
