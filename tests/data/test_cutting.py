"""Texts cut into pieces and chunks: no token is lost, none is trained on twice, TRL's chunks."""

from __future__ import annotations

import random
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from llmft_alignments.sft import CompletionLoss

from llmft.api import CompletionRow, Encoded, TextRow
from llmft.api.errors import DataError
from llmft.api.train_settings import TrainSettings
from llmft.data.cutting import Pieces
from llmft.data.encoding import Encoder
from llmft.data.packing import PackedObjective, pack
from llmft.modeling import attention
from llmft.modeling.tiny_models import tiny_llama, tiny_tokenizer

TEXTS = ["Once upon a time there was a boat.", "It sank.", "a" * 90, "The", "end, at last, of it."]


def rows(*lengths):
    """Return rows whose tokens are all different, so that each can be found again."""
    numbers = iter(range(sum(lengths)))
    made = [tuple(next(numbers) for _ in range(length)) for length in lengths]
    return [Encoded(ids, ids, f"row {n}") for n, ids in enumerate(made)]


def pieces(given, limit, **options):
    return Pieces([(row.input_ids, row.origin, True) for row in given], limit, **options)


def tokens(made):
    return list(chain.from_iterable(row.input_ids for row in made))


def lengths(made):
    return [len(row.input_ids) for row in made]


def wrapping(**more):
    return TrainSettings(packing=True, packing_strategy="wrapped", max_length=16, **more)


def chunks(**more):
    """Return the chunks that texts are trained on in."""
    settings = wrapping(**more)
    encoded, _ = Encoder(tiny_tokenizer(), 16).encode(
        [TextRow(text) for text in TEXTS], settings, wrap=True
    )
    return pack(encoded, 16, "wrapped")


def test_a_long_row_becomes_pieces_that_hold_all_its_tokens_in_order():
    given = rows(3, 11, 8, 4)
    made = pieces(given, 4)
    assert lengths(made) == [3, 4, 4, 3, 4, 4, 4]
    assert tokens(made) == tokens(given)
    assert [row.origin for row in made] == ["row 0"] + ["row 1"] * 3 + ["row 2"] * 2 + ["row 3"]
    assert all(row.labels == row.input_ids for row in made)
    assert sorted(made.remarks.values()) == [2, 5]  # two rows, five pieces


def test_a_last_token_alone_is_left_out_as_nothing_predicts_it():
    made = pieces(rows(9, 1, 2), 4)
    assert lengths(made) == made.lengths() == [4, 4, 2]
    assert tokens(made) == [*range(8), 10, 11]
    assert made.remarks["last tokens that stand alone in their piece, and are left out"] == 1
    assert made.dropped == ["row 1"]


def test_a_text_that_comes_in_parts_is_cut_as_if_it_came_whole():
    for wrap in (False, True):
        for joined in (False, True):
            whole = pieces(rows(37, 16, 5), 16, wrap=wrap, joined=joined)
            parts = Pieces(
                [(range(9), "row 0", False), ([], "row 0", False), (range(9, 16), "row 0", False),
                 (range(16, 37), "row 0", False), ([], "row 0", True),
                 (range(37, 53), "row 1", True), (range(53, 57), "row 2", False),
                 ([57], "row 2", True)], 16, wrap=wrap, joined=joined,
            )  # fmt: skip
            assert list(parts) == list(whole)
            assert parts.remarks == whole.remarks


@pytest.mark.parametrize("seed", range(5))
def test_chunks_are_full_and_hold_every_token_once_in_order(seed):
    draw = random.Random(seed)
    given = rows(*(draw.randint(2, 50) for _ in range(40)))
    for joined in (False, True):
        found = pack(pieces(given, 16, wrap=True, joined=joined), 16, "wrapped")
        assert [sum(lengths(bin)) for bin in found[:-1]] == [16] * (len(found) - 1)
        assert tokens(chain.from_iterable(found)) == tokens(given)
        assert all(len(bin) == 1 for bin in found) is joined
        assert [row for bin in found for row in bin if row.labels != row.input_ids] == []


def test_the_last_chunk_is_told_and_kept_unless_nothing_in_it_is_predicted():
    made = pieces(rows(5, 6), 4, wrap=True, joined=True)
    assert lengths(made) == [4, 4, 3]
    assert made.remarks["tokens in a last, shorter chunk, which is kept"] == 3
    made = pieces(rows(5, 4), 4, wrap=True)
    assert lengths(made) == [4, 1, 3]
    left_out = "tokens in a last, shorter chunk, which is left out: nothing in it is predicted"
    assert made.remarks[left_out] == 1
    assert made.remarks["chunks that end inside a row, which goes on in the next one"] == 2


@pytest.mark.parametrize("joined", [False, True])
def test_trl_packs_the_same_texts_into_the_same_chunks(tmp_path, joined):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        output_dir=str(tmp_path), max_length=16, packing=True, packing_strategy="wrapped",
        report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, shuffle_dataset=False,
        per_device_train_batch_size=20, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=tiny_llama(), args=args, processing_class=tiny_tokenizer(pad=True),
        train_dataset=Dataset.from_list([{"text": text} for text in TEXTS]),
    )  # fmt: skip
    ours = chunks(cross_document_attention=joined)
    assert [tokens(bin) for bin in ours] == [row["input_ids"] for row in trainer.train_dataset]
    if not joined:
        return
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    model = trainer.model.train()
    theirs = trainer.compute_loss(model, dict(batch))
    objective = PackedObjective(CompletionLoss())
    mine = objective.loss(model, ours)[0] / objective.weight(ours)
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("joined", [False, True])
def test_the_loss_is_that_of_plain_transformers_on_the_pieces(joined):
    model = tiny_llama().eval()
    ours = chunks(cross_document_attention=joined)
    assert any(len(bin) > 1 for bin in ours) is not joined
    total = count = 0.0
    for row in chain.from_iterable(ours):
        ids = torch.tensor([row.input_ids])
        logits = model(input_ids=ids).logits[0, :-1]
        if len(logits):
            total += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum").detach())
        count += len(logits)
    objective = PackedObjective(CompletionLoss())
    assert objective.weight(ours) == count
    attention.register()
    model.set_attn_implementation(attention.NAME)
    assert float(objective.loss(model, ours)[0].detach()) == pytest.approx(total, rel=1e-5)


def test_rows_to_score_are_split_alone_and_keep_their_start():
    encoded, _ = Encoder(tiny_tokenizer(), 16).encode([TextRow(t) for t in TEXTS], wrapping())
    whole = [len(text) + 1 for text in TEXTS]
    assert sum(lengths(encoded)) == sum(whole) - whole.count(33) - whole.count(17)
    assert [row.input_ids[:1] for row in encoded if len(row.input_ids) < 16] != []
    starts = [tuple(text.encode())[:16] for text in TEXTS]
    assert all(any(row.input_ids[: len(start)] == start for row in encoded) for start in starts)


def test_a_text_of_many_rows_length_is_not_cut_before_it_is_tokenised():
    text = "word " * 39_999
    encoded, _ = Encoder(tiny_tokenizer(), 16).encode([TextRow(text)], wrapping(), wrap=True)
    assert tokens(encoded) == [*text.encode(), 256]
    kept, _ = Encoder(tiny_tokenizer(), 16).encode([TextRow(text)], TrainSettings())
    assert lengths(kept) == [16]  # truncated, where nothing else is asked for


def test_what_is_no_plain_text_is_not_cut():
    given = [TextRow("a" * 40), CompletionRow("a", "b", origin="rows.jsonl:2")]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: on_long_row: split cuts plain text"):
        Encoder(tiny_tokenizer(), 16).encode(given, TrainSettings(on_long_row="split"))
