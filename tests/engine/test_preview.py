"""The preview of a job: what its methods ask for, without weights; and the page of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmft.data.preview_page import facts
from llmft.engine.preview import preview_job
from llmft.engine.session import run_recipe
from llmft.modeling.base_model import BaseModel
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry

ROWS = [{"prompt": f"Q{n}?", "completion": f" {'a' * n}", "id": n} for n in range(1, 9)]
PAIRS = [{"prompt": f"Q{n}?", "chosen": f" yes {n}", "rejected": f" no {n}"} for n in range(6)]
LORA = {"method": "lora", "r": 2}


@pytest.fixture
def job(tmp_path, model_folder):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in PAIRS))

    def job(*stages, **extra):
        data = {"recipe": 1, "name": "tiny", "model": {"path": str(model_folder)},
                "stages": list(stages), "output_dir": str(tmp_path / "runs"), **extra}  # fmt: skip
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(data))
        return load_recipe(path, Registry.discover())

    return job


@pytest.fixture
def sft(tmp_path):
    return {"name": "sft", "adapter": LORA, "alignment": {"method": "sft"},
            "data": {"method": "jsonl", "path": str(tmp_path / "rows.jsonl")},
            "train": {"max_steps": 1}}  # fmt: skip


def on_pairs(tmp_path, method, **settings):
    return {"name": method, "adapter": LORA, "alignment": {"method": method, **settings},
            "data": {"method": "preference", "path": str(tmp_path / "pairs.jsonl")},
            "train": {"max_steps": 1}}  # fmt: skip


@pytest.fixture(autouse=True)
def no_weights(monkeypatch, request):
    if "run" not in request.node.name:
        monkeypatch.setattr(BaseModel, "load", lambda *_: pytest.fail("weights were loaded"))


def preview(job, **options):
    return preview_job(job, BaseModel(job.recipe.model), picks=2, **options)


def test_every_kind_of_stage_shows_what_it_will_read(job, sft, tmp_path):
    ppo = {"name": "ppo", "adapter": LORA,
           "alignment": {"method": "ppo", "reward": {"method": "length", "target": 3},
                         "response_length": 4},
           "data": {"method": "prompts", "path": str(tmp_path / "rows.jsonl")}}  # fmt: skip
    collect = {"name": "collect", "task": {"method": "collect", "max_new_tokens": 4},
               "data": {"method": "prompts", "path": str(tmp_path / "rows.jsonl")}}  # fmt: skip
    rank = {"name": "rank", "task": {"method": "rank", "samples": "collect"}}
    later = {**on_pairs(tmp_path, "reward"), "data": {"method": "from_stage", "stage": "rank"}}
    stages = [sft, *(on_pairs(tmp_path, m) for m in ("dpo", "orpo")), ppo, collect, rank, later]
    found = {stage.name: stage for stage in preview(job(*stages))}
    assert {name: (s.kind, s.items) for name, s in found.items() if s.items} == {
        "sft": ("rows", 8), "dpo": ("pairs", 6), "orpo": ("pairs", 6), "ppo": ("prompts", 8),
        "collect": ("prompts", 8),
    }  # fmt: skip
    assert (found["rank"].comes_from, found["reward"].comes_from) == ("collect", "rank")
    assert found["ppo"].trained_tokens == 0
    assert found["sft"].unread == {"train": {"id": 8}}
    assert [s.name for s in preview(job(*stages), stages=["orpo"])] == ["orpo"]


def test_items_that_a_method_changes_are_shown_as_it_changed_them(job, tmp_path):
    plain, whole = (
        preview(job(on_pairs(tmp_path, "orpo", learn_prompt=learn)))[0] for learn in (False, True)
    )
    assert whole.trained_tokens > plain.trained_tokens


def test_a_run_that_would_stop_is_shown_and_says_why(job, sft, tmp_path):
    sft["train"] |= {"max_length": 6, "max_dropped": 0, "on_long_row": "drop"}
    (found,) = preview(job(sft))
    assert found.dropped == 7
    assert found.items == 1
    assert found.refused.line().startswith("error[E104] 7 of 8 rows would be dropped")
    assert {row.lost for row in found.rows if "dropped" in row.picked} == {"dropped, too long"}
    sft["train"] |= {"on_long_row": "fail"}
    assert preview(job(sft))[0].refused.line().startswith("error[E106]")
    sft["train"] |= {"max_length": 2, "on_long_row": "drop"}
    (found,) = preview(job(sft))
    assert found.items == 0
    assert found.refused.line().startswith("error[E105]")


def test_pieces_of_texts_and_their_counts_are_shown(job, sft):
    sft["data"]["columns"] = {"text": "{prompt}{completion}"}
    sft["train"] |= {"packing": True, "packing_strategy": "wrapped", "max_length": 8}
    (found,) = preview(job(sft))
    whole = sum(len(row["prompt"] + row["completion"]) + 1 for row in ROWS)
    assert (found.tokens, found.counts) == (whole, {})
    assert found.remarks["chunks of 8 tokens, filled by rows one after another"] == whole // 8
    assert {row.piece for row in found.rows} >= {"1 of 2", "2 of 2"}
    assert {row.turn for row in found.rows} == {""}
    sft["train"] |= {"cross_document_attention": True}
    (found,) = preview(job(sft))
    assert set(found.histogram[-1]) & {8}
    assert found.items == -(-whole // 8)
    first = next(row for row in found.rows if "first" in row.picked)
    text = "".join(piece.text for part in first.parts for piece in part.pieces)
    assert text == "Q1? a</s>Q2?"[: len(text)]


def test_what_a_method_finds_wrong_with_its_rows_is_told(job, tmp_path):
    (found,) = preview(job(on_pairs(tmp_path, "reward", use_margin=True)))
    assert "use_margin is set, and the pair has no margin" in found.refused.what


def test_a_run_keeps_the_same_page_as_the_preview(job, sft):
    made = job(sft)
    folder = run_recipe(made).folder
    page = (Path(folder) / "stages/sft/preview.html").read_text()
    (found,) = preview(made)
    assert f"{found.tokens:,}, {found.trained_tokens:,} of them trained on" in page
    assert "rows.jsonl:1; " in page
    assert "&#39;id&#39;: columns" in page


def test_each_bad_row_is_named_with_its_place_also_among_those_that_are_scored_on(
    job, sft, tmp_path
):
    rows, bad = tmp_path / "rows.jsonl", tmp_path / "bad.jsonl"
    bad.write_text(rows.read_text() + "[]\n" * 5)
    sft["data"] |= {"path": None, "on_bad_row": "skip"}
    sft["data"]["data_files"] = {"train": str(bad), "test": str(bad)}
    (stage,) = preview(job({**sft, "evaluate": {"split": "test"}}))
    assert (stage.skipped, stage.held_out_skipped) == (5, 5)
    said = [value for _, value in facts(stage)]
    assert all(sum(f"bad.jsonl:{line}:" in one for one in said) == 2 for line in range(9, 14))
    assert not any("llmft preview names each" in one for one in said)
