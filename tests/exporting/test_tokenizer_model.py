"""A tokenizer for llama.cpp's converter: SentencePiece makes the same ids of the file as we do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, trainers

from llmft.exporting.tokenizer_model import Piece, Type, encoded, pieces_of, write_beside

TEXTS = (
    "she sells sea shells by the sea shore", "the shells she sells are sea shells, I am sure",
    "so if she sells sea shells on the sea shore, then the shells are sea shore shells",
)  # fmt: skip


def like_llama() -> Tokenizer:
    """A BPE as Llama 2's tokenizer.json is one, trained on a few words."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>", *letters]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    told = json.loads(tokenizer.to_str())
    told["added_tokens"] = told["added_tokens"][:3]  # bytes are plain tokens
    tokenizer = Tokenizer.from_str(json.dumps(told))
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


def test_scores_are_the_places_of_merges_and_types_are_told():
    model = {
        "type": "BPE", "byte_fallback": True, "unk_token": "<unk>",
        "vocab": {"<unk>": 0, "<0x0A>": 1, "a": 2, "b": 3, "ab": 4, "aba": 6},
        "merges": ["a b", ["ab", "a"], "a ba"],
    }  # fmt: skip
    added = [{"id": 0, "content": "<unk>", "special": True},
             {"id": 7, "content": "</s>", "special": True},
             {"id": 8, "content": "<tool>", "special": False}]  # fmt: skip
    assert pieces_of({"model": model, "added_tokens": added}) == [
        Piece("<unk>", 0.0, Type.UNKNOWN), Piece("<0x0A>", 0.0, Type.BYTE),
        Piece("a", -3.0, Type.NORMAL), Piece("b", -3.0, Type.NORMAL),
        Piece("ab", 0.0, Type.NORMAL), Piece("[PAD5]", 0.0, Type.UNUSED),
        Piece("aba", -1.0, Type.NORMAL), Piece("</s>", 0.0, Type.CONTROL),
        Piece("<tool>", -3.0, Type.NORMAL),
    ]  # fmt: skip
    for other in ({"type": "Unigram"}, {"byte_fallback": False}, {"unk_token": None}):
        assert pieces_of({"model": model | other}) is None


def test_the_bytes_are_those_of_the_format():
    assert encoded([Piece("ab", -1.0, Type.NORMAL)]) == (
        b"\x0a\x0b" b"\x0a\x02ab" b"\x15\x00\x00\x80\xbf" b"\x18\x01"  # piece: text, score, type
        b"\x12\x05" b"\x18\x02" b"\x98\x02\x01"  # trainer: BPE, byte_fallback
        b"\x1a\x0c" b"\x0a\x08identity" b"\x20\x00"  # normaliser
    )  # fmt: skip


def test_what_is_there_stays_and_other_tokenizers_get_none(tmp_path):
    backend = SimpleNamespace(backend_tokenizer=like_llama())
    write_beside(backend, tmp_path)
    added = json.loads((tmp_path / "added_tokens.json").read_text())
    assert list(added) == ["<tool>"]
    (tmp_path / "tokenizer.model").write_text("its own")
    write_beside(backend, tmp_path)
    assert (tmp_path / "tokenizer.model").read_text() == "its own"
    (tmp_path / "other").mkdir()
    write_beside(SimpleNamespace(backend_tokenizer=Tokenizer(models.BPE())), tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_sentencepiece_makes_the_same_ids(tmp_path):
    pieces = pytest.importorskip("sentencepiece")
    tokenizer = like_llama()
    _same(pieces, tokenizer, [*TEXTS, "seashells  sell\n\ttea", "Ünicode 漢字 🙂"], tmp_path)
    if assets := os.environ.get("LLMFT_REAL_ASSETS"):
        real = Path(assets) / "models" / "stories15M" / "tokenizer.json"
        said = [*TEXTS, "Provide  two\n\nwords: 漢字 🙂", "a needle in Lily's cobweb"]
        _same(pieces, Tokenizer.from_file(str(real)), said, tmp_path / "real")


def _same(pieces, tokenizer: Tokenizer, texts: list[str], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    write_beside(SimpleNamespace(backend_tokenizer=tokenizer), folder)
    theirs = pieces.SentencePieceProcessor()
    theirs.LoadFromFile(str(folder / "tokenizer.model"))
    for text in texts:
        assert theirs.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids
