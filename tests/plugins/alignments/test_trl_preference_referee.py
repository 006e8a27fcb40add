"""TRL as the referee: the same pairs give the same losses and the same gradients."""

from __future__ import annotations

import pytest
import torch
from llmft_alignments.cpo import Cpo, CpoObjective
from llmft_alignments.dpo import Dpo, DpoItem, DpoObjective
from llmft_alignments.dpo.losses import DPO_LOSSES
from llmft_alignments.orpo import Orpo, OrpoItem, OrpoObjective
from llmft_alignments.pairs import pair_logps
from llmft_alignments.reward import Reward, RewardObjective

from llmft.modeling import attention, heads
from llmft.modeling.tiny_models import tiny_llama, tiny_tokenizer

from .conftest import PAIRS, encoded

COMMON = {
    "per_device_train_batch_size": 4, "max_length": 128, "report_to": [], "use_cpu": True,
    "gradient_checkpointing": False, "bf16": False, "disable_tqdm": True,
}  # fmt: skip


def packed(model):
    attention.register()
    model.set_attn_implementation(attention.NAME)
    return model


def same_gradients(mine, theirs, tolerance=1e-6):
    named = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in mine.named_parameters():
        if name in named and named[name] is not None:
            # Gradients differ by the order of float32 sums: by a share of the largest.
            atol = tolerance * max(1.0, float(named[name].abs().max()))
            torch.testing.assert_close(parameter.grad, named[name], atol=atol, rtol=1e-4, msg=name)


@pytest.fixture(scope="module")
def dpo(tmp_path_factory):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(output_dir=str(tmp_path_factory.mktemp("trl")), beta=0.3, **COMMON)
    return DPOTrainer(
        model=tiny_llama(), ref_model=tiny_llama(1), args=args,
        processing_class=tiny_tokenizer(pad=True), train_dataset=Dataset.from_list(PAIRS),
    )  # fmt: skip


def items():
    """Our pairs with the log-likelihoods of another model as the reference."""
    pairs = encoded()
    with torch.no_grad():
        reference = pair_logps(tiny_llama(1), pairs, share=False).tolist()
    return [
        DpoItem(p.chosen, p.rejected, p.shared, p.margin, p.origin, reference=(c, r))
        for p, (c, r) in zip(pairs, reference, strict=True)
    ]


def test_trl_reads_pairs_as_we_do(dpo):
    for pair, theirs in zip(encoded(), dpo.train_dataset, strict=True):
        assert list(pair.chosen.input_ids) == theirs["prompt_ids"] + theirs["chosen_ids"]
        assert list(pair.rejected.input_ids) == theirs["prompt_ids"] + theirs["rejected_ids"]


MIXES = [[name] for name in sorted(DPO_LOSSES)] + [["sigmoid", "bco_pair", "sft"]]


@pytest.mark.parametrize("mix", MIXES, ids="+".join)
def test_dpo_loss_and_gradient_are_trls(dpo, mix):
    # TRL reads label smoothing in fewer losses than we do: sigmoid alone is where they differ.
    smoothing = 0.1 if mix[0] in ("exo_pair", "robust", "aot", "aot_unpaired") else 0.0
    weights = [0.8, 0.2, 1.0][: len(mix)]
    dpo.loss_types, dpo.loss_weights, dpo.label_smoothing = mix, weights, smoothing
    theirs = dpo.model.train()
    theirs.zero_grad()
    loss = dpo.compute_loss(theirs, dpo.data_collator(list(dpo.train_dataset)))
    loss.backward()
    config = Dpo.Config(
        method="dpo", beta=0.3, loss_type=mix, loss_weights=weights, label_smoothing=smoothing
    )
    model, batch = packed(tiny_llama().train()), items()
    objective = DpoObjective(config, share=True)
    mine = objective.loss(model, batch)[0] / objective.weight(batch)
    mine.backward()
    # These grow with the log-likelihoods, sums of 100 nats that float32 holds to 1e-5.
    raw = mix[0] in ("hinge", "discopop", "sppo_hard")
    torch.testing.assert_close(mine, loss, atol=1e-6, rtol=5e-6 if raw else 1e-6)
    same_gradients(model, theirs, tolerance=1e-4 if raw else 1e-6)


@pytest.mark.parametrize("kind", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_dpo_divergences_are_trls(dpo, kind):
    dpo.loss_types, dpo.loss_weights, dpo.label_smoothing = ["sigmoid"], [1.0], 0.0
    dpo.f_divergence_type, before = kind, dpo.f_divergence_type
    try:
        loss = dpo.compute_loss(dpo.model, dpo.data_collator(list(dpo.train_dataset)))
    finally:
        dpo.f_divergence_type = before
    config = Dpo.Config(method="dpo", beta=0.3, f_divergence_type=kind)
    mine = DpoObjective(config, share=False).loss(tiny_llama().train(), items())[0] / 4
    torch.testing.assert_close(mine, loss, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("center", [0.0, 0.05])
@pytest.mark.parametrize("margin", [False, True])
def test_reward_loss_and_gradient_are_trls(tmp_path, center, margin):
    from datasets import Dataset
    from transformers import LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    model = tiny_llama().train()
    heads.add_score_head(model)
    config = model.config.__class__.from_dict(
        model.config.to_dict() | {"num_labels": 1, "pad_token_id": 257}
    )
    theirs = LlamaForSequenceClassification(config).float()
    theirs.model.load_state_dict(model.model.state_dict())
    theirs.score.load_state_dict(model.score.state_dict())
    records = [{**pair, "margin": 0.3 * n} for n, pair in enumerate(PAIRS)]
    args = RewardConfig(
        output_dir=str(tmp_path), center_rewards_coefficient=center or None,
        disable_dropout=True, **COMMON,
    )  # fmt: skip
    kept = records if margin else PAIRS
    trainer = RewardTrainer(
        model=theirs, args=args, processing_class=tiny_tokenizer(pad=True),
        train_dataset=Dataset.from_list(kept),
    )  # fmt: skip
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    loss = trainer.compute_loss(trainer.model.train(), batch)
    loss.backward()
    mine_config = Reward.Config(
        method="reward", center_rewards_coefficient=center, use_margin=margin
    )
    objective, pairs = RewardObjective(mine_config, share=True), encoded(records)
    mine = objective.loss(packed(model), pairs)[0] / objective.weight(pairs)
    mine.backward()
    torch.testing.assert_close(mine, loss, atol=1e-6, rtol=1e-6)
    same_gradients(model, trainer.model)


@pytest.fixture(scope="module")
def cpo(tmp_path_factory):
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    args = CPOConfig(output_dir=str(tmp_path_factory.mktemp("cpo")), beta=0.3, **COMMON)
    return CPOTrainer(
        model=tiny_llama(), args=args, processing_class=tiny_tokenizer(pad=True),
        train_dataset=Dataset.from_list(PAIRS),
    )  # fmt: skip


CPO = [
    {}, {"label_smoothing": 0.1, "cpo_alpha": 0.0}, {"loss_type": "hinge", "cpo_alpha": 0.5},
    {"loss_type": "ipo"}, {"loss_type": "simpo", "simpo_gamma": 0.9, "cpo_alpha": 0.0},
    {"loss_type": "simpo", "alpha": 0.25, "label_smoothing": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("options", CPO, ids=str)
def test_cpo_loss_gradient_and_metrics_are_trls(cpo, options):
    config = Cpo.Config(method="cpo", beta=0.3, **options)
    for name in ("loss_type", "cpo_alpha", "simpo_gamma", "label_smoothing", "alpha"):
        setattr(cpo, name, getattr(config, name))
    cpo.model.zero_grad()
    batch = cpo.data_collator(list(cpo.train_dataset))
    loss, metrics = cpo.get_batch_loss_metrics(cpo.model.train(), batch)
    loss.backward()
    model, objective, pairs = packed(tiny_llama().train()), CpoObjective(config, True), encoded()
    mine, ours = objective.loss(model, pairs)
    mine = mine / objective.weight(pairs)
    mine.backward()
    # A sum of 100 nats is held to 1e-5 by float32.
    torch.testing.assert_close(mine, loss, atol=1e-6, rtol=5e-6)
    same_gradients(model, cpo.model, tolerance=1e-5)
    for name in ours.keys() - {"tokens", "nll_loss"} | (
        {"nll_loss"} if config.cpo_alpha else set()
    ):
        assert float(ours[name]) / 4 == pytest.approx(metrics[name], rel=1e-5, abs=1e-5), name


def test_orpo_loss_and_gradient_are_trls(tmp_path):
    """TRL averages the NLL over a batch's tokens, we over each pair's: alike on one pair."""
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    args = ORPOConfig(output_dir=str(tmp_path), beta=0.7, **COMMON)
    tokenizer = tiny_tokenizer(pad=True)
    trainer = ORPOTrainer(
        model=tiny_llama(), args=args, processing_class=tokenizer,
        train_dataset=Dataset.from_list(PAIRS),
    )  # fmt: skip
    config = Orpo.Config(method="orpo", beta=0.7, learn_prompt=True)
    objective = OrpoObjective(config, share=True)
    for pair, theirs in zip(encoded(), trainer.train_dataset, strict=True):
        assert list(pair.chosen.input_ids) == theirs["chosen_input_ids"]
        trainer.model.zero_grad()
        batch = trainer.data_collator([theirs])
        loss, metrics = trainer.get_batch_loss_metrics(trainer.model.train(), batch)
        loss.backward()
        model = packed(tiny_llama().train())
        mine, ours = objective.loss(model, [OrpoItem.of(pair, learn_prompt=True)])
        mine.backward()
        torch.testing.assert_close(mine, loss, atol=2e-6, rtol=1e-6)
        assert ours["logps/chosen"] == pytest.approx(metrics["logps/chosen"], abs=1e-5)
        same_gradients(model, trainer.model)
