"""TRL as the referee: the same rows give the same loss and the same gradient."""

from __future__ import annotations

import pytest
import torch
from llmft_alignments.sft import CompletionLoss

from llmft.api import CompletionRow
from llmft.api.settings import TrainSettings
from llmft.data.encoding import Encoder
from llmft.modeling import attention
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


@pytest.mark.parametrize("packed", [False, True])
def test_sft_loss_and_gradient_are_trls(trl_trainer, packed):
    batch = trl_trainer.data_collator([dict(row) for row in trl_trainer.train_dataset])
    theirs = trl_trainer.model.train()
    theirs.zero_grad()
    loss = trl_trainer.compute_loss(theirs, dict(batch))
    loss.backward()
    model = tiny_llama().train()
    if packed:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    objective, rows = CompletionLoss(), ours()
    mine = objective.loss(model, rows)[0] / objective.weight(rows)
    mine.backward()
    torch.testing.assert_close(mine, loss, atol=1e-6, rtol=1e-6)
    for (name, p), q in zip(model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-4, msg=name)
