"""A fast tokenizer as the `tokenizer.model` of SentencePiece, which llama.cpp's converter reads.

Llama 2's, Mistral's and Gemma's tokenizers are BPE of SentencePiece. transformers saves them as
tokenizer.json alone. Of that llama.cpp's converter takes no order of merges (every score is -1000),
and a runtime then splits words otherwise; or it converts nothing.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

FILE, ADDED = "tokenizer.model", "added_tokens.json"


class Type(IntEnum):
    """ModelProto.SentencePiece.Type of sentencepiece_model.proto."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """A token. score: of two merges, the one whose result has the higher score comes first."""

    text: str
    score: float
    type: Type


def write_beside(tokenizer: Any, folder: Path) -> None:
    """Write what the converter needs of a tokenizer into a model's folder; nothing for others.

    A tokenizer of another kind than SentencePiece's BPE needs no such file.
    """
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    if (folder / FILE).exists() or (pieces := pieces_of(told)) is None:
        return
    (folder / FILE).write_bytes(encoded(pieces))
    added = {t["content"]: t["id"] for t in told.get("added_tokens", ()) if not t["special"]}
    if added:
        (folder / ADDED).write_text(json.dumps(added), "utf-8")


def pieces_of(told: Mapping[str, Any]) -> list[Piece] | None:
    """Return the tokens by their ids; None where it is no BPE of SentencePiece.

    told: a tokenizer.json. Such a BPE falls back to bytes, and has a token for what it cannot
    write. The score of a token is minus the place of the first merge that makes it: SentencePiece
    merges by score, and tokenizers by place.
    """
    model = told["model"]
    unknown = model.get("unk_token")
    if model.get("type") != "BPE" or not model.get("byte_fallback") or unknown is None:
        return None
    places: dict[str, int] = {}
    for place, merge in enumerate(model["merges"]):
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        places.setdefault(first + second, place)
    added = {token["id"]: token for token in told.get("added_tokens", ())}
    ids = {number: text for text, number in model["vocab"].items()}
    ids |= {number: token["content"] for number, token in added.items()}
    found = []
    for number in range(max(ids) + 1):
        text = ids.get(number)
        if text is None:
            found.append(Piece(f"[PAD{number}]", 0.0, Type.UNUSED))
            continue
        kind = Type.NORMAL
        if text == unknown:
            kind = Type.UNKNOWN
        elif number in added and added[number]["special"]:
            kind = Type.CONTROL
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            kind = Type.BYTE
        merged = kind is Type.NORMAL
        score = -float(places.get(text, len(model["merges"]))) if merged else 0.0
        found.append(Piece(text, score, kind))
    return found


def encoded(pieces: Iterable[Piece]) -> bytes:
    """Return a ModelProto of sentencepiece_model.proto: pieces, a BPE with bytes, no normaliser."""
    body = b"".join(
        _message(1, _message(1, one.text.encode())
                 + b"\x15" + struct.pack("<f", one.score) + _number(3, one.type))
        for one in pieces
    )  # fmt: skip
    trainer = _number(3, 2) + _number(35, 1)  # model_type: BPE, byte_fallback
    normaliser = _message(1, b"identity") + _number(4, 0)  # remove_extra_whitespaces
    return body + _message(2, trainer) + _message(3, normaliser)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
