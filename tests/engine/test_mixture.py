"""A stage on several sources: trained on together, held out and scored each."""

from __future__ import annotations

import json
import math

import pytest

from llmft.api.errors import LlmftError
from llmft.data.mixed_rows import equal_shares
from llmft.data.preview_page import facts
from llmft.data.stage_rows import stage_rows
from llmft.engine.preflight import preflight
from llmft.engine.preview import preview_job
from llmft.engine.session import run_recipe
from llmft.modeling.base_model import BaseModel
from llmft.recipes.load import load_recipe
from llmft.recipes.sources import source_names
from llmft.registry.registry import Registry

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def talk(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def sources(tmp_path):
    """Ten prompts in 'a' with a column that nobody reads, and four conversations in 'b'."""
    a = [{"prompt": f"a{n % 9}?", "completion": f" {n % 9}", "note": "x"} for n in range(10)]
    b = [{"messages": talk(f"b{n}", f"yes {n}")} for n in range(4)]
    return [
        {"method": "jsonl", "path": lines(tmp_path / "a.jsonl", a)},
        {"method": "chat", "path": lines(tmp_path / "b.jsonl", b)},
    ]


def stage(sources, evaluate=None, **data):
    return {
        "name": "s", "adapter": {"method": "lora", "r": 2}, "alignment": {"method": "sft"},
        "data": {"method": "mix", "sources": sources, **data},
        "train": {"max_steps": 2, "per_device_train_batch_size": 2},
        **({"evaluate": evaluate} if evaluate else {}),
    }  # fmt: skip


@pytest.fixture
def bound(tmp_path, model_folder):
    """Load a recipe of one stage, and return its job."""

    def load(stage):
        data = {
            "recipe": 1,
            "name": "m",
            "output_dir": str(tmp_path / "runs"),
            "model": {"path": str(model_folder), "chat_template": TEMPLATE},
            "stages": [stage],
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(data))
        return load_recipe(path, Registry.discover())

    return load


def rows_of(job, seed=17):
    one = job.stages[0]
    return stage_rows(one.spec, one.dataset, seed)


def test_rows_are_held_out_of_each_source_before_they_are_mixed(bound, sources):
    drawn = {"mixing": "interleave", "stopping_strategy": "all_exhausted"}
    train, held = rows_of(bound(stage(sources, {"holdout": 0.25}, **drawn)))
    assert {name: len(part.rows) for name, part in held.sources.items()} == {"a": 2, "b": 1}
    assert len(train.rows) == 16  # in turn, until the 8 rows of 'a' are through
    assert not {row.origin for row in train.rows} & {row.origin for row in held.rows}
    assert all(".jsonl:" in row.origin for row in train.rows)


def test_so_many_rows_are_held_out_of_all_sources_together(bound, sources):
    train, held = rows_of(bound(stage(sources, {"holdout": 5})))
    assert (len(train.rows), len(held.rows)) == (9, 5)
    assert not {row.origin for row in train.rows} & {row.origin for row in held.rows}
    assert rows_of(bound(stage(sources, {"holdout": 5})))[1].digest == held.digest
    with pytest.raises(LlmftError, match="takes 14 rows of 14, and none is left to train on"):
        rows_of(bound(stage(sources, {"holdout": 14})))


def test_a_prompt_of_two_sources_is_held_out_of_both(bound, tmp_path):
    sources = []
    for name, numbers in (("a", range(12)), ("b", range(14, 2, -1))):
        rows = [{"prompt": f"{n}?", "completion": f" {name}"} for n in numbers]
        sources.append({"method": "jsonl", "path": lines(tmp_path / f"{name}.jsonl", rows)})
    train, held = rows_of(bound(stage(sources, {"holdout": 0.25, "holdout_by": "prompt"})))
    asked = [{row.prompt for row in part.rows} for part in (train, held)]
    assert len(held.rows) in (6, 7)
    assert len(train.rows) + len(held.rows) == 24
    assert not asked[0] & asked[1]


def test_the_digest_covers_the_order_and_the_weights(bound, sources):
    def digest(*weights, seed=17):
        weighed = [s | {"weight": w} for s, w in zip(sources, weights, strict=True)]
        return rows_of(bound(stage(weighed, mixing="interleave")), seed)[0].digest

    assert digest(0.7, 0.3) == digest(7.0, 3.0)
    assert len({digest(0.7, 0.3), digest(0.3, 0.7), digest(0.7, 0.3, seed=1)}) == 3


def test_each_source_has_its_own_limit_and_way_with_bad_rows(bound, sources, tmp_path):
    lines(tmp_path / "b.jsonl", [{"messages": []}, *[{"messages": talk("q", "a")}] * 2])
    with pytest.raises(LlmftError) as caught:
        rows_of(bound(stage(sources)))
    assert caught.value.faults[0].path == "data.sources.1"
    sources[0]["limit"], sources[1]["on_bad_row"] = 3, "skip"
    train, _ = rows_of(bound(stage(sources)))
    assert (len(train.rows), train.skipped, train.seen) == (5, 1, 6)
    assert train.note().startswith("b: skipped 1 of 3 rows")


def test_preflight_names_the_file_that_is_not_there_in_its_source(bound, sources):
    sources[1]["path"] = "nowhere.jsonl"
    (fault,) = preflight(bound(stage(sources)), None)
    assert (fault.code, fault.path) == ("E107", "stages[0].data.sources[1].path")


def test_two_sources_of_one_file_keep_their_rows_apart(bound, sources):
    twice = [sources[0], sources[0] | {"columns": {"prompt": "note"}}]
    train, _ = rows_of(bound(stage(twice)))
    assert list(train.sources) == ["a", "a_2"]
    assert train.rows[0].origin.endswith("a.jsonl:1")
    assert train.rows[10].origin.endswith("a.jsonl:1 (a_2)")


def test_a_limit_of_evaluation_is_shared_evenly(bound, sources):
    assert equal_shares(7, [10, 2, 10]) == [3, 2, 2]
    assert equal_shares(None, [3, 2]) == [3, 2]
    assert equal_shares(99, [3, 2]) == [3, 2]
    held = rows_of(bound(stage(sources, {"holdout": 0.5, "limit": 4})))[1]
    assert [len(part.rows) for part in held.sources.values()] == [2, 2]


def test_names_come_from_paths_and_are_told_apart(bound, sources):
    named = [sources[0], sources[0], sources[1] | {"name": "talk"}]
    assert source_names(bound(stage(named)).stages[0].spec.data) == ["a", "a_2", "talk"]


def test_a_preview_counts_each_source(bound, sources):
    job = bound(stage(sources, {"holdout": 0.25}, mixing="interleave",
                      stopping_strategy="all_exhausted"))  # fmt: skip
    (shown,) = preview_job(job, BaseModel(job.recipe.model), picks=1)
    a, b = shown.sources
    assert (a.name, a.rows, a.drawn, a.items, a.held_out) == ("a", 8, 8, 8, 2)
    assert (b.name, b.rows, b.drawn, b.items, b.held_out) == ("b", 3, 8, 8, 1)
    assert a.tokens + b.tokens == shown.tokens
    assert a.trained_tokens + b.trained_tokens == shown.trained_tokens
    assert (a.unread, b.unread) == ({"note": 10}, {})
    told = dict(facts(shown))
    assert "(3, 2.67 times)" in told["source b"]
    assert "not read: note" in told["source a"]
    # A row that is drawn again is no duplicate; two rows that say the same are.
    assert shown.duplicates.within == a.repeats <= 1


def test_scores_are_given_of_each_source_and_together(bound, sources):
    asked = {"metrics": ["loss", "exact_match"], "holdout": 0.25, "max_new_tokens": 2, "samples": 2}
    asked |= {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "b_loss"}
    found = run_recipe(bound(stage(sources, asked)))
    result = found.stages["s"]
    scores = json.loads((found.folder / "stages/s/scores.json").read_text())["after"]
    assert {name: len(scores[name]) for name in ("loss", "a_loss", "b_loss")} == {
        "loss": 3, "a_loss": 2, "b_loss": 1,
    }  # fmt: skip
    after = result.after
    assert (
        min(after["a_loss"], after["b_loss"])
        < after["loss"]
        < max(after["a_loss"], after["b_loss"])
    )
    assert math.fsum(scores["a_loss"]) / 2 == pytest.approx(after["a_loss"])
    assert after["exact_match"] == pytest.approx(
        (2 * after["a_exact_match"] + after["b_exact_match"]) / 3
    )
    assert result.metrics["best_b_loss"] == pytest.approx(min(
        line["b_loss"] for line in map(json.loads, (found.folder / "stages/s/metrics.jsonl").open())
        if "b_loss" in line
    ))  # fmt: skip
    samples = map(json.loads, (found.folder / "stages/s/samples.jsonl").open())
    assert [s["source"] for s in samples if s["when"] == "after"] == ["a", "b"]


def test_preferences_are_mixed_and_scored_by_source_too(bound, tmp_path):
    pairs = [{"prompt": f"q{n}", "chosen": " good", "rejected": " bad"} for n in range(4)]
    sources = [
        {"method": "preference", "path": lines(tmp_path / f"{name}.jsonl", pairs[:count])}
        for name, count in (("a", 4), ("b", 2))
    ]
    whole = stage(sources, {"metrics": [], "holdout": 0.5}) | {"alignment": {"method": "dpo"}}
    after = run_recipe(bound(whole)).stages["s"].after
    name = "preference_margin"
    assert after[name] == pytest.approx((2 * after[f"a_{name}"] + after[f"b_{name}"]) / 3)
