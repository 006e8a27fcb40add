"""Sequence classification: the loss is transformers', and the result loads in plain PEFT."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from llmft_alignments.classification import Classification, padding_for
from llmft_alignments.classification.measures import macro_f1, macro_f1_values
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    LlamaConfig,
)

from llmft.api import EncodedClassification
from llmft.api.errors import DataError, LlmftError, RecipeError
from llmft.api.train_settings import TrainSettings
from llmft.cli.main import main
from llmft.data.held_out import hold_out
from llmft.engine.session import resume_recipe
from llmft.inference.answering import load_run
from llmft.inference.scoring import score_file
from llmft.modeling.heads import why_no_classifier
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.testing import AlignmentContract
from llmft.training.step_plan import Plan

from ..conftest import metrics_of

WORDS = ["fine film", "bad", "so so, I think", "a good one", "awful", "neither this nor that"]
LABELS = ["pos", "neg", "mid"]
TEXTS = [
    {"text": f"{WORDS[n % 6]} {n}", "label": LABELS[n % 3], "tags": LABELS[: n % 3], "stars": n / 7}
    for n in range(24)
]
TRAIN = {"max_steps": 4, "per_device_train_batch_size": 6, "learning_rate": 0.01,
         "logging_steps": 1, "lr_scheduler_type": "constant", "optim": "sgd"}  # fmt: skip
SINGLE, MULTI, NUMBER = (
    {}, {"problem_type": "multi_label_classification"}, {"problem_type": "regression"},
)  # fmt: skip


class TestClassification(AlignmentContract):
    method_class = Classification
    configs = [
        SINGLE, MULTI, NUMBER, {"class_weights": "balanced"},
        {"id2label": ["0", "1"], "class_weights": [1.0, 2.5]},
    ]  # fmt: skip


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
    return path


def stage(path, label="label", adapter=None, train=None, **options):
    return {
        "name": "cls", "adapter": adapter or {"method": "lora", "r": 4},
        "alignment": {"method": "classification", **options},
        "data": {"method": "classification", "path": str(path), "columns": {"label": label}},
        "train": {**TRAIN, **(train or {})}, "evaluate": {"holdout": 6},
    }  # fmt: skip


KINDS = [(SINGLE, "label", 3), (MULTI, "tags", 2), (NUMBER, "stars", 1)]


@pytest.mark.parametrize(("options", "label", "outputs"), KINDS)
@pytest.mark.parametrize("adapter", [{"method": "lora", "r": 4}, {"method": "full"}])
def test_the_result_gives_plain_transformers_its_logits_and_its_loss(
    run, texts, model_folder, options, label, outputs, adapter
):
    """The held-out loss of the run is that of plain transformers on the same rows, to 6 digits."""
    summary = run(stage(texts, label, adapter, **options))
    folder = summary.folder / "stages/cls"
    result = json.loads((folder / "result.json").read_text())
    saved = folder / "adapter"
    config = AutoConfig.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    assert config.num_labels == outputs
    if adapter["method"] == "full":
        model = AutoModelForSequenceClassification.from_pretrained(saved, dtype=torch.float32)
    else:
        plain = AutoModelForSequenceClassification.from_pretrained(model_folder, config=config)
        model = PeftModel.from_pretrained(plain, saved)
    model.eval()
    held = held_out(summary.folder)
    rows = tokenizer([one["text"] for one in held], padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**rows, labels=targets(held, options, config))
    assert result["after"]["loss"] == pytest.approx(float(out.loss), rel=1e-6)
    (summary.folder.parent / "asked.jsonl").write_text(
        "".join(json.dumps({"text": one["text"]}) + "\n" for one in held)
    )
    job = load_run(summary.folder, Registry.discover())
    scored = score_file(job, summary.folder, summary.folder.parent / "asked.jsonl")
    if options is NUMBER:
        assert [one["predicted"] for one in scored] == pytest.approx(out.logits[:, 0].tolist())
        return
    shares = out.logits.softmax(1) if options is SINGLE else out.logits.sigmoid()
    for one, share in zip(scored, shares.tolist(), strict=True):
        assert one["scores"] == pytest.approx(
            dict(zip(config.id2label.values(), share, strict=True))
        )
        best = max(one["scores"], key=one["scores"].get)
        above = [name for name, value in one["scores"].items() if value > 0.5]
        assert one["predicted"] == (best if options is SINGLE else above)


def held_out(run):
    seed = load_run(run, Registry.discover()).recipe.seed
    return hold_out(TEXTS, 6, seed)[1]


def targets(rows, options, config):
    if options is NUMBER:
        return torch.tensor([row["stars"] for row in rows])
    if options is MULTI:
        return torch.tensor(
            [[float(name in row["tags"]) for name in config.label2id] for row in rows]
        )
    return torch.tensor([config.label2id[row["label"]] for row in rows])


def test_the_steps_of_training_are_plain_transformers(run, texts, model_folder):
    """Four steps of SGD from the saved start, by torch's own loop over the plain classifier."""
    block = stage(texts, train={"save_strategy": "steps", "save_steps": 1, "max_steps": 3,
                                "save_total_limit": 3}, adapter={"method": "full"})  # fmt: skip
    block["evaluate"] = None
    summary = run(block)
    losses = [one["loss"] for one in metrics_of(summary, "cls")]
    folder = summary.folder / "stages/cls/checkpoints"
    first, second = (load_file(folder / f"step-{n}/state.safetensors") for n in (1, 2))
    names = {name.split("|")[-1].removeprefix("weights/"): name for name in first}
    config = AutoConfig.from_pretrained(summary.folder / "stages/cls/adapter")
    model = AutoModelForSequenceClassification.from_pretrained(model_folder, config=config)
    known = {n: first[k] for n, k in by_weight(names, dict(model.named_parameters())).items()}
    model.load_state_dict(known, strict=False)
    model.train()
    seed = load_run(summary.folder, Registry.discover()).recipe.seed
    plan = Plan.of(len(TEXTS), TrainSettings.model_validate(block["train"]), seed)
    rows = [TEXTS[n] for batch in plan.step_batches(1) for n in batch]
    tokenizer = AutoTokenizer.from_pretrained(summary.folder / "stages/cls/adapter")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    out = model(**inputs, labels=targets(rows, SINGLE, config))
    assert losses[1] == pytest.approx(out.loss.item(), rel=1e-6)
    out.loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    for name, key in by_weight(names, dict(model.named_parameters())).items():
        ours = second[key]
        torch.testing.assert_close(model.get_parameter(name).detach(), ours, atol=1e-6, rtol=1e-5)


def by_weight(names, parameters):
    """Return, for each parameter that a checkpoint holds, the name that it has there."""
    return {name: key for name in parameters for key in names.values() if key.endswith(name)}


def test_a_batch_is_as_its_rows_alone_and_padding_ends_no_row(run, texts):
    one = run(stage(texts, train={"gradient_accumulation_steps": 6,
                                  "per_device_train_batch_size": 1}))  # fmt: skip
    alone = metrics_of(one, "cls")
    whole = metrics_of(run(stage(texts)), "cls")
    for a, b in zip(alone, whole, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(one.folder / "stages/cls/adapter")
    ends = EncodedClassification((5, tokenizer.eos_token_id), (-100, -100), "", 0)
    assert padding_for([ends], tokenizer) != tokenizer.eos_token_id


def test_it_resumes_to_the_bit(run, texts):
    saving = {"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    whole = run(stage(texts, train=saving))
    files = {p.name: p.read_bytes() for p in (whole.folder / "stages/cls/adapter").iterdir()}
    folder = whole.folder / "stages/cls"
    for name in ("adapter", "checkpoints/step-4"):
        shutil.rmtree(folder / name)
    (folder / "result.json").unlink()
    resume_recipe(load_recipe(whole.folder / "resolved.yaml", Registry.discover()), whole.folder)
    again = {p.name: p.read_bytes() for p in (folder / "adapter").iterdir()}
    timed = {"README.md", "manifest.json"}  # these hold times and the checksums of such
    assert [name for name in files if name not in timed and files[name] != again[name]] == []
    assert len([name for name in files if name.endswith(".safetensors")]) == 2


def test_the_cards_code_gives_the_commands_class(run, texts, tmp_path):
    summary = run(stage(texts))
    card = (summary.folder / "stages/cls/adapter/README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    code = re.sub(r'"[^"]*/adapter"', repr(str(summary.folder / "stages/cls/adapter")), code)
    base = load_run(summary.folder, Registry.discover()).recipe.model.path
    code = re.sub(r"^base = .*$", f"base = {base!r}", code, flags=re.M)
    names: dict = {}
    exec(code.replace('"..."', repr(TEXTS[0]["text"])), names)
    (tmp_path / "asked.jsonl").write_text(json.dumps({"text": TEXTS[0]["text"]}) + "\n")
    job = load_run(summary.folder, Registry.discover())
    [found] = score_file(job, summary.folder, tmp_path / "asked.jsonl")
    assert names["label"] == found["predicted"]
    scores = names["logits"].softmax(-1)[0].tolist()
    assert list(found["scores"].values()) == pytest.approx(scores, rel=1e-4)


def test_a_label_that_only_held_out_rows_have_is_a_fault_with_its_line(run, tmp_path):
    (tmp_path / "d").mkdir()
    for split, more in (("train", []), ("validation", [{"text": "odd", "label": "new"}])):
        rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, *more]
        (tmp_path / f"d/{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    block = stage(tmp_path / "d")
    block["evaluate"] = {}
    with pytest.raises(DataError, match=r"validation.jsonl:3: the label 'new' is none of .*x, y"):
        run(block)


def test_what_cannot_be_is_said_before_the_model(run, texts, tmp_path):
    same = tmp_path / "same.jsonl"
    same.write_text('{"text": "a", "label": "x"}\n' * 9)
    with pytest.raises(DataError, match="every row has the class 'x'"):
        run(stage(same))
    block = stage(texts)
    block["evaluate"] = {"holdout": 4, "metrics": ["perplexity"]}
    with pytest.raises(LlmftError, match="'perplexity' scores tokens or answers"):
        run(block)
    for options, said in (
        ({"id2label": ["a", "a"]}, "names a class twice"),
        ({"id2label": {"1": "a", "2": "b"}}, "are not 0, 1, 2"),
        ({"id2label": ["a"]}, "one class"),
        ({"class_weights": [1.0, 2.0]}, "need id2label"),
        ({"id2label": ["a", "b"], "class_weights": [1.0]}, "has 1 numbers"),
        ({"class_weights": "balanced", **MULTI}, "one class a row"),
        ({"id2label": ["a", "b"], **NUMBER}, "predicts a number"),
    ):
        with pytest.raises(RecipeError, match=said):
            run(stage(texts, **options))


def test_a_model_whose_classifier_is_another_one_is_refused():
    assert "does not read one linear layer" in why_no_classifier(BertConfig())
    assert why_no_classifier(LlamaConfig()) == why_no_classifier(GPT2Config()) == ""


def test_the_command_line_plans_previews_and_scores(run, texts, capsys):
    summary = run(stage(texts, train={"save_strategy": "steps", "save_steps": 2}))
    recipe = str(summary.folder / "resolved.yaml")
    assert main(["plan", recipe]) == 0
    assert "-> classifier" in capsys.readouterr().out
    assert main(["preview", recipe]) == 0
    assert "right answers" in capsys.readouterr().out
    for more in ([], ["--step", "2"]):
        assert main(["score", str(summary.folder), str(texts), *more]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {line["predicted"] for line in lines} <= set(LABELS)
    report = json.loads((summary.folder / "stages/cls/report.json").read_text())
    assert sum(map(sum, report["confusion"])) == 6


def test_macro_f1_is_the_mean_over_classes_that_occur():
    # Right: a a a b; chosen: a a b b. F1 of a: 2*2/(2+3); of b: 2*1/(2+1). c occurs nowhere.
    right = torch.tensor([[1, 0, 0]] * 3 + [[0, 1, 0]]).bool()
    chosen = torch.tensor([[1, 0, 0]] * 2 + [[0, 1, 0]] * 2).bool()
    wanted = (4 / 5 + 2 / 3) / 2
    assert macro_f1(chosen, right) == pytest.approx(wanted)
    values = macro_f1_values(chosen, right)
    assert len(values) == 4
    assert sum(values) / 4 == pytest.approx(wanted)
