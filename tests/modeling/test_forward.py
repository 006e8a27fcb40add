"""Label likelihoods: packed, padded and split heads all give what a plain forward pass gives."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from llmft.api import Encoded
from llmft.modeling import attention, forward
from llmft.modeling.batching import padding_free_inputs
from llmft.modeling.tiny_models import VOCABULARY, tiny_gpt2, tiny_llama


def rows(seed: int = 0, lengths: tuple[int, ...] = (5, 17, 2, 9)) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for n in lengths:
        ids = torch.randint(0, 256, (n,), generator=generator).tolist()
        learnt = n // 2
        made.append(Encoded(tuple(ids), tuple([-100] * (n - learnt) + ids[n - learnt :])))
    return made


def reference(model, batch):
    """Each row by itself through the whole model, in the plainest way."""
    out = []
    for row in batch:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0]
        target = torch.tensor(row.labels)
        nll = F.cross_entropy(logits[:-1], target[1:], reduction="none", ignore_index=-100)
        out.append(nll[target[1:] != -100])
    return out


def tiny(architecture: str):
    import transformers as t

    common = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128,
        "bos_token_id": None, "eos_token_id": 256, "pad_token_id": None,
    }  # fmt: skip
    if architecture == "llama":
        return tiny_llama()
    if architecture == "gpt2":
        return tiny_gpt2()
    grouped = {"num_key_value_heads": 2}
    configs = {
        "qwen2": lambda: t.Qwen2Config(**common, **grouped),
        "qwen3": lambda: t.Qwen3Config(**common, **grouped, head_dim=8),
        "mistral": lambda: t.MistralConfig(**common, **grouped, sliding_window=6),
        "gemma": lambda: t.GemmaConfig(**common, **grouped, head_dim=8),
        "gpt_neox": lambda: t.GPTNeoXConfig(**common),
        "phi": lambda: t.PhiConfig(**common),
        "opt": lambda: t.OPTConfig(
            **{k: v for k, v in common.items() if k != "intermediate_size"},
            ffn_dim=64, word_embed_proj_dim=32,
        ),
    }  # fmt: skip
    torch.manual_seed(0)
    return t.AutoModelForCausalLM.from_config(configs[architecture]()).eval()


ARCHITECTURES = ["llama", "gpt2", "qwen2", "qwen3", "mistral", "gemma", "gpt_neox", "phi", "opt"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lengths", [(5, 17, 2, 9), (40, 2, 3), (7,)])
def test_rows_laid_end_to_end_do_not_see_each_other(architecture, lengths):
    model, batch = tiny(architecture), rows(lengths=lengths)
    expected = torch.cat(reference(model, batch))
    assert attention.supports(type(model), model.config)
    attention.register()
    model.set_attn_implementation(attention.NAME)
    found = forward.label_nll(model, batch)
    torch.testing.assert_close(found.nll_N, expected, atol=2e-5, rtol=2e-5)
    per_row = torch.stack([nll.sum() for nll in reference_again(architecture, batch)])
    torch.testing.assert_close(found.per_row(len(batch)), per_row, atol=5e-5, rtol=2e-5)


def reference_again(architecture, batch):
    return reference(tiny(architecture), batch)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_padded_rows_give_the_same(architecture):
    model, batch = tiny(architecture), rows()
    found = forward.label_nll(model, batch)
    torch.testing.assert_close(found.nll_N, torch.cat(reference(model, batch)), atol=2e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("lengths", [(9, 4), (3, 30)])
def test_two_answers_may_share_their_prompt(architecture, lengths):
    """The rejected row is laid from where it differs; even its first label needs the prompt."""
    model, prompts = tiny(architecture), rows(lengths=(12, 5))
    answers = rows(seed=1, lengths=lengths)
    batch, shared = [], []
    for prompt in prompts:
        n = len(prompt.input_ids)
        for answer in answers:
            ids = prompt.input_ids + answer.input_ids
            batch.append(Encoded(ids, (-100,) * n + answer.input_ids))
        shared += [(0, 0), (len(batch) - 2, n)]
    expected = torch.cat(reference(model, batch))
    attention.register()
    model.set_attn_implementation(attention.NAME)
    found = forward.label_nll(model, batch, shared)
    torch.testing.assert_close(found.nll_N, expected, atol=2e-5, rtol=2e-5)
    again = forward.label_nll(model, batch)
    torch.testing.assert_close(found.nll_N, again.nll_N, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("budget", [0.0, 100.0])
def test_attention_of_rows_end_to_end_has_the_gradient_of_rows_alone(budget, monkeypatch):
    """Both ways of computing it: a call for each segment, and one call over padded segments."""
    monkeypatch.setattr(attention, "_PADDING_BUDGET", budget)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 12, 4, generator=generator) for _ in range(3))
    weight = torch.randn(1, 12, 2, 4, generator=generator)
    # Three rows of 5, 3 and 4 tokens; the second has the first two tokens of the first before it.
    bounds, shared = torch.tensor([0, 5, 8, 12]), torch.tensor([[0, 0], [0, 2], [0, 0]])
    found = []
    for packed in (True, False):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        if packed:
            out, _ = attention.varlen_attention(
                torch.nn.Module(), *leaves, None, cu_seq_lens_q=bounds, shared_prefix=shared
            )
        else:
            row = torch.tensor([0] * 5 + [1] * 3 + [2] * 4)
            seen = (row.unsqueeze(1) == row) & torch.ones(12, 12, dtype=torch.bool).tril()
            seen[5:8, :2] = True
            scores = leaves[0] @ leaves[1].transpose(2, 3) / 2
            scores = scores.masked_fill(~seen, -torch.inf)
            out = (scores.softmax(3) @ leaves[2]).transpose(1, 2)
        (out * weight).sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-5, rtol=1e-5)


def test_a_head_split_over_positions_gives_the_same_gradient(monkeypatch):
    grads = []
    for limit in (2**25, 7 * VOCABULARY):
        monkeypatch.setattr(forward, "LOGITS_AT_ONCE", limit)
        model = tiny_llama()
        found = forward.label_nll(model, rows())
        found.nll_N.sum().backward()
        grads.append([found.nll_N.detach()] + [p.grad for p in model.parameters()])
    for whole, split in zip(*grads, strict=True):
        torch.testing.assert_close(split, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("at_once", [2**24, 7 * VOCABULARY])
def test_a_frozen_head_gives_the_plain_loss_and_gradient_without_its_logits(at_once, monkeypatch):
    monkeypatch.setattr(forward, "LOGITS_AT_ONCE", at_once)
    found = []
    for plain in (True, False):
        model = tiny_llama()
        model.lm_head.requires_grad_(False)
        batch = rows()
        nll = torch.cat(reference(model, batch)) if plain else forward.label_nll(model, batch).nll_N
        nll.square().sum().backward()  # every label has a weight of its own
        grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        found.append([nll.detach(), *grads.values()])
        assert model.lm_head.weight.grad is None
    for whole, split in zip(*found, strict=True):
        torch.testing.assert_close(split, whole, atol=1e-4, rtol=1e-5)


def test_the_models_own_logits_are_made_only_where_its_head_is_trained(monkeypatch):
    made = []
    plain = forward.logits_at
    monkeypatch.setattr(forward, "logits_at", lambda *a: made.append(plain(*a)) or made[-1])
    model = tiny_llama().requires_grad_(False)
    forward.label_nll(model, rows())
    model.lm_head.requires_grad_(True)
    forward.label_nll(model, rows())
    assert [out.shape[-1] for out in made] == [model.config.hidden_size, VOCABULARY]


def test_prompt_tokens_after_the_answer_and_padding_change_nothing(llama):
    short, long = rows(lengths=(6, 20))
    alone = forward.label_nll(llama, [short]).nll_N
    beside = forward.label_nll(llama, [short, long])
    torch.testing.assert_close(beside.nll_N[beside.row_N == 0], alone, atol=1e-6, rtol=1e-6)


def test_the_heads_input_is_the_last_hidden_state(llama):
    with torch.no_grad():
        found = forward.head_input(llama, [1, 2, 3])
        told = llama(input_ids=torch.tensor([[1, 2, 3]]), output_hidden_states=True)
    torch.testing.assert_close(found, told.hidden_states[-1], atol=0, rtol=0)


def test_no_label_at_all_is_an_error(llama):
    with pytest.raises(ValueError, match="no row of the batch has a label"):
        forward.label_nll(llama, [Encoded((1, 2), (-100, -100))])


def test_the_mean_of_two_known_tokens_by_hand():
    """With all logits equal the likelihood of any token is 1 / V."""
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = forward.label_nll(model, [Encoded((1, 2, 3), (-100, 2, 3))])
    expected = torch.full((2,), float(torch.tensor(VOCABULARY).log()))
    torch.testing.assert_close(found.nll_N, expected)


def test_each_label_is_predicted_where_the_token_before_it_is_laid():
    """Of rows with any labels, some of which share the start of an earlier one."""
    draw = random.Random(0)
    for _ in range(100):
        first = [draw.randint(0, 99) for _ in range(draw.randint(1, 9))]
        given, shared = [first], [(0, 0)]
        for _ in range(draw.randint(0, 4)):
            n = draw.randint(0, len(first))
            given.append(first[:n] + [draw.randint(0, 99) for _ in range(draw.randint(1, 9))])
            shared.append((0, n))
        batch = [Encoded(tuple(ids), tuple(draw.choice([-100, i]) for i in ids)) for ids in given]
        for prefixes in (None, shared):
            inputs, at, labels, of_row = padding_free_inputs(batch, prefixes)
            wanted = [
                (number, row.labels[t], row.input_ids[t - 1], t - 1)
                for number, row in enumerate(batch)
                for t in range(1, len(row.labels))
                if row.labels[t] != -100
            ]
            ids, places = (inputs[name][0][at].tolist() for name in ("input_ids", "position_ids"))
            found = zip(of_row.tolist(), labels.tolist(), ids, places, strict=True)
            assert list(found) == wanted
            ends = inputs["cu_seq_lens_q"].tolist()
            for number, row in enumerate(batch):
                n = prefixes[number][1] if prefixes else 0
                laid = slice(ends[number], ends[number + 1])
                assert inputs["input_ids"][0, laid].tolist() == list(row.input_ids[n:])
                assert inputs["position_ids"][0, laid].tolist() == list(
                    range(n, len(row.input_ids))
                )
