"""ROUGE, BLEU and chrF: what the libraries give, several right answers, a missing package."""

from __future__ import annotations

import importlib.util
import json

import pytest
from llmft_metrics import rouge as rouge_module
from llmft_metrics import sacre
from llmft_metrics.rouge import Rouge
from llmft_metrics.sacre import Bleu, Chrf

from llmft.api import PromptRow, ScoredAnswer
from llmft.api.errors import EnvironmentFault, LlmftError
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.testing import MetricContract

TEXTS = [
    ("The cat sat on the mat.", ["A cat sat on the mat.", "The cat is sitting on a mat."]),
    ("Oslo is the capital of Norway", ["Oslo is Norway's capital"]),
    ("", ["nothing at all"]),
    ("It rains,\nand it pours.", ["It pours,\nand it rains.", "Rain", "It rains, it pours."]),
]


class TestRouge(MetricContract):
    method_class = Rouge
    configs = [{}, {"rouge_types": ["rougeL"], "use_stemmer": True, "name": "r"}]


class TestBleu(MetricContract):
    method_class = Bleu
    configs = [{}, {"max_ngram_order": 1, "tokenize": "char"}]


class TestChrf(MetricContract):
    method_class = Chrf
    configs = [{}, {"word_order": 2, "char_order": 2}]


def answers():
    return [ScoredAnswer("?", text, tuple(right), PromptRow("?", tuple(right)))
            for text, right in TEXTS]  # fmt: skip


def streams():
    """The right answers as sacrebleu takes them: the first ones, the second ones, and so on."""
    return [[right[n] if n < len(right) else None for _, right in TEXTS] for n in range(3)]


@pytest.mark.parametrize("settings", [{}, {"tokenize": "intl", "lowercase": True}])
def test_bleu_is_sacrebleus_over_the_corpus(settings):
    import sacrebleu

    ours = Bleu(Bleu.Config(method="bleu", **settings)).score_corpus(answers())
    theirs = sacrebleu.corpus_bleu([text for text, _ in TEXTS], streams(), **settings)
    assert ours == theirs.score
    assert 10 < ours < 90


@pytest.mark.parametrize("word_order", [0, 2])
def test_chrf_is_sacrebleus_over_the_corpus(word_order):
    import sacrebleu

    ours = Chrf(Chrf.Config(method="chrf", word_order=word_order)).score_corpus(answers())
    theirs = sacrebleu.corpus_chrf([text for text, _ in TEXTS], streams(), word_order=word_order)
    assert ours == theirs.score
    assert 10 < ours < 90


def test_rouge_is_rouge_scores_best_over_the_right_answers():
    from rouge_score.rouge_scorer import RougeScorer

    types = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer, metric = RougeScorer(types), Rouge(Rouge.Config(method="rouge"))
    for answer, (text, right) in zip(answers(), TEXTS, strict=True):
        found = metric.score(answer)
        each = [scorer.score(one, text) for one in right]
        for name in types:
            best = max(scores[name].fmeasure for scores in each)
            assert found[name.removeprefix("rouge")] == best


MISSING = [("bleu", "sacrebleu", sacre), ("chrf", "sacrebleu", sacre),
           ("rouge", "rouge-score", rouge_module)]  # fmt: skip


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize(("name", "package", "module"), MISSING)
def test_a_missing_package_is_named_with_the_command(
    name, package, module, block, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    asked = f"{{method: {name}}}" if block else name
    path = tmp_path / "recipe.yaml"
    path.write_text(f"""\
recipe: 1
name: r
model: {{path: "embedded:model"}}
stages:
  - name: s
    adapter: {{method: lora}}
    alignment: {{method: sft}}
    data: {{method: triviaqa, path: "embedded:trivia"}}
    evaluate: {{metrics: [loss, {asked}]}}
""")
    with pytest.raises(LlmftError) as caught:
        load_recipe(path, Registry.discover())
    (fault,) = caught.value.faults
    assert (fault.code, fault.fix) == ("E206", f"pip install {package}")
    assert isinstance(caught.value, EnvironmentFault)
    assert fault.place.line == 9


def test_a_run_has_them_with_intervals(run, tmp_path, monkeypatch):
    from llmft.evaluation import generation

    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"say {n}:", "completion": f"a b c d {n}"} for n in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(
        generation, "generate",
        lambda model, tokenizer, prompts, **_: [f"a b c {'d' if n % 2 else 'x'} {n}"
                                                for n in range(len(prompts))],
    )  # fmt: skip
    found = run({
        "name": "s", "adapter": {"method": "lora", "r": 2}, "alignment": {"method": "sft"},
        "data": {"method": "jsonl", "path": str(path)}, "train": {"max_steps": 1},
        "evaluate": {"metrics": ["bleu", "chrf", "rouge"], "holdout": 8},
    }).stages["s"]  # fmt: skip
    names = ["bleu", "chrf", "rouge_1", "rouge_2", "rouge_L", "rouge_Lsum"]
    assert sorted(found.after) == sorted(names)
    for name in names:
        score = found.scores["after"][name]
        assert score["low"] < score["value"] < score["high"], name
        assert found.scores["difference"][name]["value"] == pytest.approx(0.0)


def test_both_libraries_are_found_here():
    """They are in the extra `test`: without them the tests above would show nothing."""
    for name in ("sacrebleu", "rouge_score"):
        assert importlib.util.find_spec(name) is not None
