"""Answers and their scores: generation, TriviaQA's metrics, and held-out loss."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from llmft_datasets.short_answers import METRICS
from transformers import GenerationConfig

from llmft.api import (
    ChatRow,
    CompletionRow,
    Encoded,
    PreferenceRow,
    PromptRow,
    SamplingParams,
    TextRow,
    text_metrics,
)
from llmft.api.errors import DataError
from llmft.engine.stage_sampler import StageSampler
from llmft.evaluation import evaluation, generation
from llmft.modeling import attention, decoding
from llmft.modeling.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.composed import composed


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("varlen", [False, True])
def test_a_batch_of_unlike_prompts_is_answered_as_transformers_answers_each(make, varlen):
    model, tokenizer = make(), tiny_tokenizer()
    prompts = [list(text.encode()) for text in ("a", "hello there", "xyz", "a longer prompt")]

    def alone(stops: list[int]) -> list[list[int]]:
        model.generation_config.eos_token_id = stops
        config = GenerationConfig(**generation.settings(model, tokenizer, 12))
        asked = [{"input_ids": torch.tensor([p]), "generation_config": config} for p in prompts]
        return [model.generate(**one)[0, len(p) :].tolist()
                for one, p in zip(asked, prompts, strict=True)]  # fmt: skip

    endless = alone([tokenizer.eos_token_id])
    wanted = alone([endless[1][5], endless[2][8]])
    assert len({len(ids) for ids in wanted}) > 1
    model.generation_config.repetition_penalty = 5.0
    if varlen:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    found = generation.generate(model, tokenizer, prompts, max_new_tokens=12, batch_size=3)
    assert found == tokenizer.batch_decode(wanted, skip_special_tokens=True)
    expected = attention.NAME if varlen else "sdpa"
    assert model.config._attn_implementation == expected


def test_a_prompt_that_fills_the_model_keeps_its_end():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    long = list(b"x" * 300 + b"the end")
    (whole,) = generation.generate(model, tokenizer, [long], max_new_tokens=4, batch_size=1)
    (kept,) = generation.generate(model, tokenizer, [long[-255:]], max_new_tokens=4, batch_size=1)
    assert whole == kept


@pytest.mark.parametrize("cut", [{}, {"top_k": 20, "top_p": 0.9, "temperature": 0.7}])
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_drawn_answers_do_not_depend_on_their_batch(make, cut):
    model, tokenizer = make(), tiny_tokenizer()
    prompts = [list(text.encode()) for text in ("a", "hello there", "xyz", "a longer prompt", "b")]
    sampling = SamplingParams(num_return_sequences=4, max_new_tokens=6, **cut)
    before = torch.get_rng_state()

    def answers(size: int, asked=prompts, seed=3):
        return generation.sample(model, tokenizer, asked, sampling, seed=(seed,), batch_size=size)

    alone = answers(1)
    assert [len(texts) for texts in alone] == [4] * len(prompts)
    assert answers(8) == alone
    assert answers(8, prompts[:2]) == alone[:2]
    assert answers(8, seed=4) != alone
    assert len({text for texts in alone for text in texts}) > 10
    assert torch.equal(before, torch.get_rng_state())


def test_drawn_answers_at_temperature_0_are_the_greedy_one():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    prompts = [list(b"hello"), list(b"a longer prompt"), list(b"x" * 240 + b"the end")]
    sampling = SamplingParams(num_return_sequences=2, max_new_tokens=4, temperature=0.0)
    drawn = generation.sample(model, tokenizer, prompts, sampling, seed=(1,), batch_size=3)
    greedy = generation.generate(model, tokenizer, prompts, max_new_tokens=4, batch_size=3)
    assert drawn == [[text, text] for text in greedy]


@pytest.mark.parametrize(
    ("answer", "right", "exact", "f1"),
    [
        ("Paris", ["Paris"], 1, 1),
        ("the  PARIS!", ["paris"], 1, 1),
        ("Paris, France", ["Paris"], 0, 2 / 3),
        ("London", ["Paris"], 0, 0),
        ("Sunset_Boulevard", ["Sunset Boulevard", "Sunset Blvd"], 1, 1),
        ("", ["Paris"], 0, 0),
        ("a cat sat", ["cat sat on mat"], 0, 2 * (1 * 0.5) / 1.5),
        ("", ["A"], 0, 0),
        (" ", [""], 0, 0),
        ("the", ["A"], 0, 0),
        (" A", ["A"], 1, 1),
        ("B", ["A"], 0, 0),
        ("+", ["-"], 0, 0),
        ("-", ["-"], 1, 1),
        ("a", ["A"], 1, 1),
        ("(A)", ["A"], 1, 1),
        ("A.", ["A"], 1, 1),
        ("A dog", ["Dog"], 1, 1),
        ("-5", ["5"], 0, 2 / 3),
        ("\u22125", ["-5"], 1, 1),
        ("1914-1918", ["1914 1918"], 1, 1),
        ("e\u0301t\u00e9", ["\u00e9te\u0301"], 1, 1),
    ],
)
def test_answers_are_scored_as_triviaqa_scores_them(answer, right, exact, f1):
    assert text_metrics.exact_match(answer, right) == exact
    assert text_metrics.f1(answer, right) == pytest.approx(f1)


def test_an_answer_of_several_lines_is_right_where_it_is_the_right_one_letter_for_letter():
    right = [" one red\n#### red"]
    for name in ("exact_match", "f1"):
        metric = METRICS[name]
        assert metric("one red\n#### red", right) == 1
        assert metric("one red", right) < 1
        assert metric("Paris\nQuestion: and", ["Paris"]) == 1
        assert metric("", right) == 0


@pytest.mark.parametrize(
    ("score", "told"),
    [
        ({"value": 2 / 3, "low": 0.2077, "high": 0.9385, "n": 3}, "0.67 [0.21, 0.94] n=3"),
        ({"value": 0.5, "low": None, "high": None, "n": 1}, "0.50 n=1"),
    ],
)
def test_a_score_is_told_with_its_interval_and_its_rows(score, told):
    assert text_metrics.shown_score(score) == told


def test_a_cut_prompt_keeps_the_token_that_begins_every_text():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token
    long = [tokenizer.bos_token_id, *b"x" * 300, *b"the end"]
    told = []
    options = {"max_new_tokens": 4, "batch_size": 1}
    (whole,) = generation.generate(model, tokenizer, [long], on_cut=told.append, **options)
    kept = [long[0], *long[-254:]]
    assert generation.generate(model, tokenizer, [kept], **options) == [whole]
    assert told == [1]
    (drawn,) = generation.sample(
        model, tokenizer, [long], SamplingParams(4, temperature=0.0), seed=(1,), batch_size=1
    )
    assert drawn == generation.generate(model, tokenizer, [[long[0], *long[-251:]]], **options)


def test_the_settings_of_generation_are_these_and_none_of_the_models_own():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    ends = tokenizer.eos_token_id
    plain = generation.settings(model, tokenizer, 9)
    assert plain == {"num_beams": 1, "do_sample": False, "max_new_tokens": 9, "use_cache": True,
                     "pad_token_id": ends, "eos_token_id": [ends]}  # fmt: skip
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.min_new_tokens = 9
    assert generation.settings(model, tokenizer, 9) == plain


def test_pseudo_values_of_the_loss_are_of_the_rows():
    model = tiny_llama()
    rows = [Encoded((1, 2, 3, 4, 5), (-100, 2, 3, 4, 5)), Encoded((7, 8), (-100, 8))]
    losses = evaluation.row_losses(model, rows, 2)
    whole, values = losses.mean, losses.values()
    assert whole == evaluation.mean_loss(model, rows, 2)
    assert math.fsum(values) / 2 == pytest.approx(whole)
    alone = [evaluation.mean_loss(model, [row], 1) for row in rows]
    assert [losses.of([n]).mean for n in (0, 1)] == pytest.approx(alone)
    assert values == pytest.approx(
        [whole + (alone[0] - whole) * 4 / 2.5, whole + (alone[1] - whole) / 2.5], rel=1e-4
    )


def test_a_short_answer_ends_with_its_line():
    assert text_metrics.first_line("\n Paris \nQuestion: and") == "Paris"
    assert text_metrics.first_line("") == ""


def test_the_mean_loss_is_over_tokens_not_rows():
    model = tiny_llama()
    rows = [Encoded((1, 2, 3, 4, 5), (-100, 2, 3, 4, 5)), Encoded((7, 8), (-100, 8))]
    total = sum(
        float(-model(torch.tensor([row.input_ids])).logits[0, t - 1].log_softmax(0)[label])
        for row in rows
        for t, label in enumerate(row.labels)
        if label != -100
    )
    for size in (1, 2):
        assert evaluation.mean_loss(model, rows, size) == pytest.approx(total / 5, rel=1e-5)
    assert evaluation.perplexity(2.0) == pytest.approx(math.e**2)
    assert math.isfinite(evaluation.perplexity(1e9))


def test_samples_and_a_methods_own_answers_are_drawn_by_different_random_numbers(monkeypatch):
    """`collect` and PPO's first step would otherwise meet each prompt with the same numbers."""
    used = []
    for module in (decoding, generation):
        monkeypatch.setattr(module, "stop_ids", lambda *_: [])
        monkeypatch.setattr(
            module, "decode", lambda m, p, params, *, seed, **_: used.append((params, seed)) or []
        )
    monkeypatch.setattr(generation, "_fitted", lambda *_: [])
    stage = composed(
        seed=17, model=None, progress=lambda *_: None, encode_prompts=lambda *_: [],
        tokenizer=SimpleNamespace(batch_decode=lambda *_, **__: []),
        train=SimpleNamespace(per_device_eval_batch_size=8),
    )  # fmt: skip
    stage.data.seed, stage.data.train = stage.seed, stage.train
    stage.data.bound = SimpleNamespace(spec=SimpleNamespace(own_seed=lambda seed: seed))
    sampler = StageSampler(stage.models, stage.data, stage.log)
    params = SamplingParams(max_new_tokens=4, num_return_sequences=2)
    sampler.sample([], params)
    sampler.sample([], params, seed=1)
    for step in range(3):
        sampler.decode([], params, seed=(step,))
    numbers = {tuple(decoding.uniforms(*one, [0])[0].tolist()) for one in used}
    assert len(used) == len(numbers) == 5


def test_another_model_s_answers_end_where_the_trained_model_s_do_too():
    model, other = tiny_llama(0), tiny_llama(1)
    stage = composed(
        seed=17, model=model, progress=lambda *_: None, tokenizer=tiny_tokenizer(),
        train=SimpleNamespace(per_device_eval_batch_size=8),
    )  # fmt: skip
    stage.data.seed, stage.data.train = stage.seed, stage.train
    stage.data.bound = SimpleNamespace(spec=SimpleNamespace(own_seed=lambda seed: seed))
    sampler, params = StageSampler(stage.models, stage.data, stage.log), SamplingParams(30)

    def answer() -> list[int]:
        (found,) = sampler.decode([[5, 6]], params, seed=(1,), model=other)
        return found.ids

    whole = answer()
    assert len(set(whole[:3])) == 3
    model.generation_config.eos_token_id = whole[2]
    assert answer() == whole[:3]
    other.generation_config.eos_token_id = whole[1]
    assert answer() == whole[:2]


def test_scores_are_means_over_rows_with_their_samples():
    rows = [CompletionRow("a", " x", ("x",)), CompletionRow("b", " y"), PromptRow("c", ("z",))]
    scores = evaluation.score_answers(
        rows, lambda prompts: ["x", "no", "z"], {"exact_match": text_metrics.exact_match}, samples=2
    )
    assert scores.metrics == {"exact_match": pytest.approx(2 / 3)}
    assert [s["answer"] for s in scores.samples] == ["x", "no"]


UNANSWERED = ({"role": "user", "content": "x"},)


@pytest.mark.parametrize(
    "row", [TextRow("x", "f:3"), PromptRow("x", origin="f:3"), ChatRow(UNANSWERED, "f:3")]
)
def test_a_row_without_a_right_answer_cannot_be_scored(row):
    with pytest.raises(DataError, match="f:3"):
        evaluation.score_answers([row], list, {"exact_match": text_metrics.exact_match}, samples=0)


def test_a_preference_is_asked_with_its_own_right_answers_or_else_the_chosen_one():
    rows = [PreferenceRow("2+2?", " four", " five", answers=("4", "IV")),
            PreferenceRow("3+3?", " six", " five")]  # fmt: skip
    metrics = {"exact_match": text_metrics.exact_match}
    found = evaluation.score_answers(rows, lambda prompts: ["IV", "six"], metrics, 2)
    assert found.metrics == {"exact_match": 1.0}
    assert [sample["right"] for sample in found.samples] == [["4", "IV"], [" six"]]
    asked = [(row.prompt, row.completion, row.answers) for row in evaluation.as_answered(rows)]
    assert asked == [("2+2?", " four", ("4", "IV")), ("3+3?", " six", ())]


def test_samples_are_as_many_as_are_asked_for_and_no_more():
    rows = [CompletionRow(f"{n}?", f"{n}") for n in range(5)]
    found = evaluation.score_answers(rows, lambda prompts: ["3"] * 5, {}, 2)
    assert [sample["prompt"] for sample in found.samples] == ["0?", "1?"]
