"""The routers' loss of a mixture of experts: TRL's, and plain transformers', number for number."""

from __future__ import annotations

import pytest
import torch
from llmft_alignments.sft import CompletionLoss, Sft

from llmft.api.errors import StageError
from llmft.modeling import attention, router_loss
from llmft.modeling.tiny_models import tiny_llama, tiny_tokenizer
from tests.composed import composed
from tests.plugins.adapters.lora.test_target_names import MOE, moe
from tests.plugins.alignments.test_sft_trl_referee import ROWS, ours


def whole(kind: str = "mixtral"):
    """A tiny mixture with a vocabulary for the tiny tokenizer, all of it trained."""
    model = moe(kind)
    torch.manual_seed(1)
    model.resize_token_embeddings(len(tiny_tokenizer(pad=True)))
    return model.requires_grad_(True)


def trained(model, rows, routers: float):
    objective = CompletionLoss(routers=routers)
    loss, told = objective.loss(model, rows)
    mean = loss / objective.weight(rows)
    mean.backward()
    return mean.detach(), told


@pytest.mark.parametrize("packed", [False, True])
def test_loss_and_gradient_are_trls(tmp_path, packed):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=3, max_length=128, report_to=[],
        use_cpu=True, gradient_checkpointing=False, bf16=False, disable_tqdm=True,
        shuffle_dataset=False, router_aux_loss_coef=0.5,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=whole(), args=args, train_dataset=Dataset.from_list(ROWS),
        processing_class=tiny_tokenizer(pad=True),
    )  # fmt: skip
    theirs = trainer.model.train()
    loss = trainer.compute_loss(
        theirs, dict(trainer.data_collator([dict(row) for row in trainer.train_dataset]))
    )
    loss.backward()
    model = whole().train()
    if packed:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    mine, told = trained(model, ours(), 0.5)
    torch.testing.assert_close(mine, loss.detach(), atol=1e-6, rtol=1e-6)
    for (name, p), q in zip(model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=2e-6, rtol=1e-4, msg=name)
    assert float(told["aux_loss"][0] / told["aux_loss"][1]) > 1
    plain, told = trained(whole().train(), ours(), 0.0)
    assert "aux_loss" not in told
    assert float(mine - plain) > 0.5


@pytest.mark.parametrize("kind", MOE)
def test_it_is_that_of_the_models_own_forward_pass(kind):
    model, rows = whole(kind).eval(), ours()
    width = max(len(row.input_ids) for row in rows)
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for line, row in enumerate(rows):
        ids[line, : len(row.input_ids)] = torch.tensor(row.input_ids)
        mask[line, : len(row.input_ids)] = 1
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask, output_router_logits=True).aux_loss
    with router_loss.router_loss(model) as found:
        CompletionLoss().loss(model, rows)
    torch.testing.assert_close(found[0].detach(), plain, atol=1e-6, rtol=1e-6)
    assert len(found) == 1
    assert not model.config.output_router_logits
    assert not model._forward_hooks


def weight_in_a_run(model, **settings) -> float:
    """Return the weight that a stage gives the routers' loss."""
    seen = []
    context = composed(
        rows=lambda: [], encode=lambda rows: rows, model=model, name="sft",
        fit=lambda items, objective: seen.append(objective.routers),
    )  # fmt: skip
    Sft(Sft.Config(method="sft", **settings)).train(context)
    return seen[0]


def test_the_models_own_weight_counts_where_its_config_or_the_recipe_says_so():
    model = whole()
    model.config.router_aux_loss_coef = 0.02
    assert weight_in_a_run(model) == 0
    assert weight_in_a_run(model, router_aux_loss_coef="config") == 0.02
    model.config.output_router_logits = True
    assert weight_in_a_run(model) == 0.02
    assert weight_in_a_run(model, router_aux_loss_coef=0.5) == 0.5
    assert weight_in_a_run(model, router_aux_loss_coef=0) == 0
    assert weight_in_a_run(tiny_llama()) == 0
    assert weight_in_a_run(tiny_llama(), router_aux_loss_coef="config") == 0
    assert weight_in_a_run(tiny_llama(), router_aux_loss_coef=0) == 0


def test_a_model_without_routers_refuses_a_weight():
    with pytest.raises(StageError, match="no mixture of experts") as caught:
        weight_in_a_run(tiny_llama(), router_aux_loss_coef=0.1)
    assert caught.value.faults[0].code == "E300"
