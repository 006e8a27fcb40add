"""TRL as the referee: the same rows give the same loss and the same gradient."""

from __future__ import annotations

import pytest
import torch
from llmft_alignments.sft import CompletionLoss, Sft

from llmft.api import CompletionRow
from llmft.api.train_settings import TrainSettings
from llmft.data.encoding import Encoder
from llmft.modeling import attention, forward
from llmft.modeling.tiny_models import tiny_llama, tiny_tokenizer

ROWS = [
    {"prompt": "Question: What is the capital of France?\nAnswer:", "completion": " Paris"},
    {"prompt": "Q: 2+2?", "completion": " four, of course"},
    {"prompt": "Name a planet.", "completion": " Neptune"},
]


@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), per_device_train_batch_size=3,
        max_length=128, report_to=[], use_cpu=True, gradient_checkpointing=False, bf16=False,
        dataset_num_proc=None, disable_tqdm=True, shuffle_dataset=False,
    )  # fmt: skip
    return SFTTrainer(
        model=tiny_llama(), args=args, train_dataset=Dataset.from_list(ROWS),
        processing_class=tiny_tokenizer(pad=True),
    )  # fmt: skip


def ours() -> list:
    rows = [CompletionRow(row["prompt"], row["completion"]) for row in ROWS]
    encoded, _ = Encoder(tiny_tokenizer(pad=True), 128).encode(rows, TrainSettings())
    return encoded


def test_trl_reads_the_rows_as_we_do(trl_trainer):
    for row, theirs in zip(ours(), trl_trainer.train_dataset, strict=True):
        assert list(row.input_ids) == theirs["input_ids"]
        assert list(row.labels) == theirs["labels"]


LOSSES = [("nll", 0.0, False), ("nll", 0.0, True), ("dft", 0.0, True), ("nll", 0.2, True)]


@pytest.mark.parametrize(("loss_type", "smoothing", "packed"), LOSSES)
def test_sft_loss_and_gradient_are_trls(trl_trainer, loss_type, smoothing, packed, monkeypatch):
    from transformers.trainer_pt_utils import LabelSmoother

    monkeypatch.setattr(trl_trainer.args, "loss_type", loss_type)
    if smoothing:
        monkeypatch.setattr(trl_trainer, "label_smoother", LabelSmoother(epsilon=smoothing))
    batch = trl_trainer.data_collator([dict(row) for row in trl_trainer.train_dataset])
    theirs = trl_trainer.model.train()
    theirs.zero_grad()
    loss = trl_trainer.compute_loss(theirs, dict(batch))
    loss.backward()
    model = tiny_llama().train()
    if packed:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    objective, rows = CompletionLoss(loss_type, smoothing), ours()
    mine = objective.loss(model, rows)[0] / objective.weight(rows)
    mine.backward()
    torch.testing.assert_close(mine, loss, atol=1e-6, rtol=1e-6)
    for (name, p), q in zip(model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("trained", [False, True])
def test_label_smoothing_is_the_same_where_logits_are_made_in_pieces(monkeypatch, trained):
    """A frozen output layer has a way of its own, which knows no smoothing."""
    found = []
    for most in (forward.LOGITS_AT_ONCE, 300 * 4):
        monkeypatch.setattr(forward, "LOGITS_AT_ONCE", most)
        model = tiny_llama().train()
        model.lm_head.requires_grad_(trained)
        loss = CompletionLoss("nll", 0.2).loss(model, ours())[0]
        loss.backward()
        found.append((loss.detach(), model.model.norm.weight.grad))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    plain = CompletionLoss().loss(tiny_llama(), ours())[0]
    assert float(found[0][0]) != pytest.approx(float(plain.detach()), rel=5e-5)


def test_smoothing_without_nll_is_refused():
    with pytest.raises(ValueError, match="read by loss_type nll only"):
        Sft.Config(method="sft", loss_type="dft", label_smoothing_factor=0.1)
