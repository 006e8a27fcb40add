"""Several data sets in one stage: their order is datasets', and their settings are checked."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset, interleave_datasets
from llmft_datasets.jsonl import Jsonl
from llmft_datasets.mix import Mix

from llmft.api.errors import DataError, LlmftError
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.testing import DatasetContract


def mix(*weights: float | None, **settings) -> Mix:
    sources = [
        Jsonl.Config(method="jsonl", path=f"{n}.jsonl", weight=w) for n, w in enumerate(weights)
    ]
    return Mix(Mix.Config(method="mix", sources=sources, **settings))


class TestMix(DatasetContract):
    method_class = Mix
    configs = [{"sources": [{"method": "jsonl"}, {"method": "chat"}]}]
    bad_records = [{"source": 0, "record": {"prompt": "a"}}, {"prompt": "a", "completion": "b"}]

    def write(self, folder):
        for name in "ab":
            rows = [{"prompt": name, "completion": f"{n}"} for n in range(2)]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"sources": [Jsonl.Config(method="jsonl", path=str(folder / f"{name}.jsonl"))
                            for name in "ab"]}  # fmt: skip

    def make(self, settings):
        made = super().make(settings)
        made.sources = [Jsonl(config) for config in made.config.sources]
        return made


@pytest.mark.parametrize("stopping", ["first_exhausted", "all_exhausted",
                                      "all_exhausted_without_replacement"])  # fmt: skip
@pytest.mark.parametrize(("counts", "weights"), [
    ((5, 3), (None, None)), ((1, 7, 4), (None,) * 3), ((50, 20), (0.7, 0.3)),
    ((3, 40, 11), (1.0, 5.0, 2.0)), ((900, 2500), (3.0, 1.0)),
])  # fmt: skip
def test_rows_are_drawn_as_datasets_interleaves_them(counts, weights, stopping):
    tables = [
        Dataset.from_dict({"source": [n] * count, "row": list(range(count))})
        for n, count in enumerate(counts)
    ]
    shares = None if None in weights else [w / sum(weights) for w in weights]
    theirs = interleave_datasets(tables, shares, seed=17, stopping_strategy=stopping)
    ours = mix(*weights, mixing="interleave", stopping_strategy=stopping).mixture(counts, 17)
    assert list(ours) == list(zip(theirs["source"], theirs["row"], strict=True))


def test_concatenated_rows_are_those_of_each_source_once():
    assert list(mix(None, None).mixture([2, 1], 17)) == [(0, 0), (0, 1), (1, 0)]


def test_weights_that_would_never_end_are_refused():
    with pytest.raises(
        DataError, match="the 1,000 rows of source 2, whose share is 1e-06"
    ) as caught:
        mix(1.0, 1e-6, mixing="interleave", stopping_strategy="all_exhausted").mixture([5, 1000], 1)
    assert caught.value.faults[0].code == "E120"


STAGE = """recipe: 1
name: mixed
model: {path: embedded:model}
stages:
  - name: s
    adapter: {method: lora}
    alignment: {method: sft}
    data:
      method: mix
      {MIX}
      sources:
        - {method: jsonl, path: a.jsonl{A}}
        - method: {B}
    evaluate: {{EVALUATE}}
"""


def faults(folder, mixing="mixing: concatenate", a="", b="chat\n          path: b.jsonl",
           evaluate="metrics: [loss]"):  # fmt: skip
    path = folder / "recipe.yaml"
    text = STAGE.replace("{MIX}", mixing).replace("{A}", a).replace("{B}", b)
    path.write_text(text.replace("{EVALUATE}", evaluate))
    try:
        load_recipe(path, Registry.discover())
    except LlmftError as error:
        return [(f.code, f.place.line, f.path.removeprefix("stages[0]."), f.what)
                for f in error.faults]  # fmt: skip
    return []


@pytest.mark.parametrize(("settings", "code", "line", "key", "said"), [
    ({"a": ", colums: {}"}, "E020", 12, "data.sources[0].colums", "unknown key 'colums'"),
    ({"b": "preference\n          path: b.jsonl"}, "E042", 13, "data.sources[1].method",
     "'preference' gives preference rows"),
    ({"b": "chatt"}, "E024", 13, "data.sources[1].method", "no dataset is called 'chatt'"),
    ({"b": "mix\n          sources: [{method: chat, path: b.jsonl}]"}, "E040", 13,
     "data.sources[1].method", "cannot be put together of others"),
    ({"a": ", weight: 2"}, "E040", 12, "data.sources[0].weight", "only where rows are interleaved"),
    ({"a": ", weight: 2", "mixing": "mixing: interleave"}, "E040", 13, "data.sources[1]",
     "this source has no weight"),
    ({"a": ", weight: 0"}, "E023", 12, "data.sources[0].weight", "must be greater than 0"),
    ({"mixing": "split: test"}, "E040", 10, "data.split", "a setting of each source"),
    ({"mixing": "stopping_strategy: all_exhausted"}, "E040", 10, "data.stopping_strategy",
     "only where rows are interleaved"),
    ({"a": ", name: b", "b": "chat\n          path: b.jsonl\n          name: b"}, "E040", 12,
     "data.sources[0].name", "2 sources are called 'b'"),
    ({"evaluate": "metrics: [loss], eval_strategy: epoch, metric_for_best_model: c_loss"}, "E043",
     15, "evaluate.metric_for_best_model", "scores loss, a_loss, b_loss"),
    ({"evaluate": "metrics: [a_loss]"}, "E043", 15, "evaluate.metrics[0]", "no metric is called"),
])  # fmt: skip
def test_what_cannot_work_is_refused_in_its_source(tmp_path, settings, code, line, key, said):
    found = faults(tmp_path, **settings)
    assert [one[:3] for one in found][:1] == [(code, line, key)]
    assert said in found[0][3]


@pytest.mark.parametrize("settings", [
    {}, {"mixing": "mixing: interleave"}, {"evaluate": "metrics: [f1, exact_match]"},
    {"evaluate": "metrics: [loss], eval_strategy: epoch, metric_for_best_model: b_loss"},
])  # fmt: skip
def test_what_can_work_is_read(tmp_path, settings):
    assert faults(tmp_path, **settings) == []


def test_a_name_and_a_weight_are_refused_where_there_is_one_data_set(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "recipe: 1\nname: one\nmodel: {path: embedded:model}\nstages:\n  - name: s\n"
        "    adapter: {method: lora}\n    alignment: {method: sft}\n"
        "    data: {method: jsonl, path: a.jsonl, name: a, weight: 2}\n"
    )
    with pytest.raises(LlmftError) as caught:
        load_recipe(path, Registry.discover())
    assert [(f.code, f.path) for f in caught.value.faults] == [
        ("E040", "stages[0].data.name"), ("E040", "stages[0].data.weight"),
    ]  # fmt: skip
