"""The reward model: its hidden states, its head saved and handed over, its report, its command."""

from __future__ import annotations

import json
import math
import re
import shutil

import pytest
import torch
from llmft_alignments.reward.report import (
    as_markdown,
    calibration,
    histograms,
    measured,
    write_report,
)

from llmft.api import Encoded
from llmft.cli import main
from llmft.inference.answering import load_run
from llmft.modeling import attention, forward, heads
from llmft.modeling.base_model import BaseModel
from llmft.modeling.tiny_models import VOCABULARY, tiny_gpt2, tiny_llama
from llmft.registry.registry import Registry
from llmft.runs.upstream import stage_model


def rows(lengths=(5, 17, 2, 9)):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randint(0, 256, (n,), generator=generator).tolist() for n in lengths]
    return [Encoded(tuple(ids), tuple(ids)) for ids in made]


def capped_gemma():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, attn_implementation="eager",
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, capped_gemma])
def test_the_last_hidden_state_is_what_the_output_layer_reads(make):
    model = make()
    found = forward.last_hidden(model, rows())
    for row, hidden in zip(rows(), found, strict=True):
        alone = model.base_model(input_ids=torch.tensor([row.input_ids])).last_hidden_state
        torch.testing.assert_close(hidden, alone[0, -1], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_rows_laid_end_to_end_and_shared_starts_give_the_same(make):
    short, long = rows((6, 11))
    both = [long, Encoded((*long.input_ids[:8], 7, 8, 9), (-100,) * 11), short]
    plain = forward.last_hidden(make(), both)
    model = make()
    attention.register()
    model.set_attn_implementation(attention.NAME)
    torch.testing.assert_close(forward.last_hidden(model, both), plain, atol=2e-5, rtol=2e-5)
    shared = [(0, 0), (0, 8), (0, 0)]
    torch.testing.assert_close(
        forward.last_hidden(model, both, shared), plain, atol=2e-5, rtol=2e-5
    )


def test_a_model_without_a_head_gives_no_reward():
    with pytest.raises(ValueError, match="no scalar head"):
        heads.rewards(tiny_llama(), rows())


def test_the_head_is_saved_and_handed_over_exactly(run, stage):
    """What a later stage gets scores as the trained model did, and trains no further."""
    summary = run(stage("reward"))
    folder = summary.folder / "stages" / "reward"
    assert (folder / "adapter" / "head.safetensors").is_file()
    job = load_run(summary.folder, Registry.discover())
    again = stage_model(job.stage("reward"), tiny_llama(), folder / "adapter", whole=True)
    assert not any(p.requires_grad for p in again.parameters())
    assert not again.training
    report = json.loads((folder / "rewards.json").read_text())
    assert report["metrics"]["accuracy"] == summary.stages["reward"].after["accuracy"]
    scored = cli_json(["score", str(summary.folder), str(pairs_of(summary))])
    from llmft.data.held_out import hold_out

    held = hold_out(range(40), 0.2, 17)[1]
    assert [scored[i]["chosen_score"] for i in held] == pytest.approx(report["chosen"], abs=1e-4)
    assert [scored[i]["rejected_score"] for i in held] == pytest.approx(
        report["rejected"], abs=1e-4
    )


def pairs_of(summary):
    import yaml

    recipe = yaml.safe_load((summary.folder / "resolved.yaml").read_text())
    return recipe["stages"][0]["data"]["path"]


def cli_json(arguments, capture=[]):  # noqa: B006
    import contextlib
    import io

    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        assert main.main([*arguments, "--json"]) == 0
    return json.loads(stream.getvalue())["scores"]


def test_score_reads_texts_completions_and_pairs(run, stage, tmp_path, capsys):
    summary = run(stage("reward"))
    file = tmp_path / "texts.jsonl"
    records = [
        {"text": "say 1: 1"},
        {"prompt": "say 1:", "completion": " 1"},
        {"prompt": "say 1:", "chosen": " 1", "rejected": " 4 or so"},
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    text, completion, pair = cli_json(["score", str(summary.folder), str(file)])
    assert text["score"] == pytest.approx(completion["score"], abs=1e-5)
    assert pair["chosen_score"] == pytest.approx(completion["score"], abs=1e-5)
    assert pair["prompt"] == "say 1:"
    out = tmp_path / "scored.jsonl"
    assert main.main(["score", str(summary.folder), str(file), "--output", str(out)]) == 0
    assert "3 records" in capsys.readouterr().out
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line.get("score") for line in lines][:2] == [text["score"], completion["score"]]
    assert main.main(["score", str(summary.folder), str(file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_score_stores_the_base_as_the_recipe_did(run, stage, model_folder, tmp_path, monkeypatch):
    model = {"path": str(model_folder), "quantization": {"load_in_4bit": True}}
    summary = run(stage("reward"), model=model)
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "say 1: 1"}\n')
    asked = []
    original = BaseModel.load

    def noted(self, options, **more):
        asked.append(options)
        return original(self, options, **more)

    monkeypatch.setattr(BaseModel, "load", noted)
    cli_json(["score", str(summary.folder), str(file)])
    assert [options["load_in_4bit"] for options in asked] == [True]


def test_a_text_too_long_to_score_loses_its_start(run, stage, tmp_path):
    summary = run(stage("reward"))  # the tiny model has 256 positions
    file = tmp_path / "texts.jsonl"
    records = [{"prompt": "p" * n, "completion": " 1"} for n in (253, 300)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    whole, cut = cli_json(["score", str(summary.folder), str(file)])
    assert cut["score"] == pytest.approx(whole["score"], abs=1e-6)


def test_score_refuses_what_it_cannot_score(run, stage, tmp_path, capsys):
    summary = run(stage("dpo"))
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "a"}\n')
    assert main.main(["score", str(summary.folder), str(file)]) == 6
    assert "no finished stage that made a reward model" in capsys.readouterr().err
    assert main.main(["score", str(summary.folder), str(file), "--stage", "dpo"]) == 6
    assert "stage 'dpo' made a policy, not a reward model" in capsys.readouterr().err
    reward = run(stage("reward"))
    assert main.main(["generate", str(reward.folder), "say 1:"]) == 6
    assert "llmft score RUN FILE" in capsys.readouterr().err
    file.write_text('{"text": "a"}\n{"words": "b"}\n')
    assert main.main(["score", str(reward.folder), str(file)]) == 3
    assert "texts.jsonl:2: nothing to score" in capsys.readouterr().err
    file.write_text('{"text": ""}\n')
    assert main.main(["score", str(reward.folder), str(file)]) == 3
    assert "texts.jsonl:1: nothing to score" in capsys.readouterr().err


def test_margins_are_learnt_where_asked(run, stage, tmp_path):
    path = tmp_path / "pairs.jsonl"
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    path.write_text("".join(json.dumps(row | {"gap": 1 + n % 3}) + "\n" for n in range(8)))
    data = {"method": "preference", "path": str(path), "columns": {"margin": "gap"}}
    summary = run(stage("reward", data=data, options={"use_margin": True}))
    assert summary.stages["reward"].steps == 4
    bare = stage("reward", data={**data, "columns": {}}, options={"use_margin": True})
    from llmft.api.errors import StageError

    with pytest.raises(StageError, match="the pair has no margin"):
        run(bare)


def test_calibration_by_hand():
    """Ten pairs at a margin of ln 4 are 0.8 sure; where 6 of 10 are right, the error is 0.2."""
    gap = torch.full((10,), math.log(4), dtype=torch.float64)
    gap[:4] *= -1
    error, bins = calibration(gap)
    assert error == pytest.approx(0.2)
    assert bins == [{"pairs": 10, "confidence": pytest.approx(0.8), "right": 0.6}]


def test_each_tenth_of_a_pairs_confidence_is_a_bin_of_its_own():
    """Ten bins over [0.5, 1], the first and the last among them."""
    middles = [0.525 + 0.05 * number for number in range(10)]
    gap = torch.tensor([math.log(p / (1 - p)) for p in middles], dtype=torch.float64)
    gap[0] *= -1
    error, bins = calibration(gap)
    assert [one["pairs"] for one in bins] == [1] * 10
    assert [one["confidence"] for one in bins] == pytest.approx(middles)
    assert [one["right"] for one in bins] == [0.0] + [1.0] * 9
    assert error == pytest.approx((middles[0] + sum(1 - p for p in middles[1:])) / 10)


def test_the_report_is_written_to_be_read_by_people_and_by_programs(tmp_path):
    rewards = torch.tensor([[1.0, 0.0], [2.0, -1.0], [0.5, 1.5]])
    metrics = measured(rewards)
    write_report(tmp_path, rewards, metrics)
    found = json.loads((tmp_path / "rewards.json").read_text())
    assert found["metrics"] == pytest.approx(metrics)
    assert (found["chosen"], found["rejected"]) == ([1.0, 2.0, 0.5], [0.0, -1.0, 1.5])
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Reward model on 3 held-out pairs\n")
    assert "| accuracy | 0.6667 |" in text


def test_the_report_counts_every_answer():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(50, 2, generator=generator)
    bars = histograms(rewards)
    assert sum(bar["chosen"] for bar in bars) == sum(bar["rejected"] for bar in bars) == 50
    metrics = measured(rewards)
    assert metrics["accuracy"] == int((rewards[:, 0] > rewards[:, 1]).sum()) / 50
    text = as_markdown(50, metrics, calibration(rewards[:, 0] - rewards[:, 1])[1], bars)
    assert "| accuracy |" in text
    assert "##" in text.split("```")[1] or "#" in text
    same = measured(torch.zeros(3, 2))
    assert same["accuracy"] == 0.0
    assert len(histograms(torch.zeros(3, 2))) == 15


def test_plain_transformers_and_peft_give_the_same_scores(run, stage, model_folder, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from llmft.inference.scoring import score_file
    from llmft.registry.registry import Registry

    one = stage("reward", adapter={"method": "lora", "r": 4, "lora_alpha": 32}, evaluate=None)
    summary = run(one)
    folder = summary.folder / "stages" / "reward" / "adapter"
    base = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1)
    model = PeftModel.from_pretrained(base, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)  # it lies beside the adapter
    texts = ["say 3: 5", "the capital of France? Paris"]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    ours = score_file(load_run(summary.folder, Registry.discover()), summary.folder, file)
    for text, scored in zip(texts, ours, strict=True):
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        theirs = float(model(input_ids=torch.tensor([ids])).logits.detach()[0, 0])
        assert scored["score"] == pytest.approx(theirs, abs=1e-4)


def test_the_cards_code_gives_the_commands_score(run, stage, model_folder, tmp_path):
    base = shutil.copytree(model_folder, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["pad_token_id"] = config["eos_token_id"]  # as many a model has it
    (base / "config.json").write_text(json.dumps(config))
    summary = run(stage("reward", evaluate=None), model={"path": str(base)})
    card = (summary.folder / "stages/reward/adapter/README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    code = re.sub(r'"[^"]*/adapter"', repr(str(summary.folder / "stages/reward/adapter")), code)
    code = re.sub(r"^base = .*$", f"base = {str(base)!r}", code, flags=re.M)
    names: dict = {}
    exec(code.replace('"..."', '"say 3: 5"'), names)
    (tmp_path / "texts.jsonl").write_text('{"text": "say 3: 5"}\n')
    (scored,) = cli_json(["score", str(summary.folder), str(tmp_path / "texts.jsonl")])
    assert scored["score"] == pytest.approx(float(names["reward"].detach()), abs=1e-4)


@pytest.mark.parametrize("adapter", ["ia3", "prefix", "prompt"])
def test_the_card_of_a_head_that_peft_does_not_read_names_llmft_alone(run, stage, adapter):
    block = {"method": adapter} | ({} if adapter == "ia3" else {"num_virtual_tokens": 4})
    summary = run(stage("reward", adapter=block, evaluate=None))
    card = (summary.folder / "stages/reward/adapter/README.md").read_text()
    assert "PeftModel" not in card
    assert "Plain PEFT does not load it: its head lies beside it. llmft does" in card
    assert 'library_name: "llmft"' in card
