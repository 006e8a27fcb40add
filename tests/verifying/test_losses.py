"""`llmft verify losses`: the same rows, labels and losses as TRL's, or what differs and where."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from trl.trainer import grpo_trainer

from llmft.cli.main import main
from llmft.engine.stage import StageRunner
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.system import trust
from llmft.verifying import first_steps, losses, trl_steps

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LORA = {"method": "lora", "r": 4, "target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.2}
ROWS = [{"prompt": f"Say {n}:", "completion": f" It is {n}."} for n in range(11)]
PAIRS = [{"prompt": f"Say {n}:", "chosen": f" It is {n}.", "rejected": " No."} for n in range(11)]
JUDGED = [
    {"prompt": f"Say {n}:", "completion": f" It is {n}.", "label": n % 3 > 0} for n in range(11)
]
ASKED = [{"prompt": f"Say {n}:"} for n in range(11)]
REWARDS = [
    {"method": "length", "target": 8, "unit": "characters"},
    {"method": "format", "lacks": "e", "weight": 0.5},
]  # fmt: skip
LISTENED = ("_fit", "_on_step", "reward_function")
CHATS = [
    {"messages": [{"role": "user", "content": f"Say {n}."},
                  {"role": "assistant", "content": f"It is {n}."}]}
    for n in range(11)
]  # fmt: skip
STEPS = {
    "num_train_epochs": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
    "learning_rate": 0.01, "lr_scheduler_type": "cosine", "warmup_steps": 1, "weight_decay": 0.1,
}  # fmt: skip


@pytest.fixture
def in_process(monkeypatch):
    """Both sides in this process; before, after: what may spoil a file of TRL's side."""
    spoilers = SimpleNamespace(before=lambda folder: None, after=lambda folder: None)

    def child(module, path, result):
        if module.endswith("trl_steps"):
            spoilers.before(path.parent)
            trl_steps.main(str(path))
            spoilers.after(path.parent)
            return
        before = {name: getattr(StageRunner, name) for name in LISTENED}
        try:
            first_steps.main(str(path))
        finally:
            for name, method in before.items():
                setattr(StageRunner, name, method)
        ended = json.loads((path.parent / "ended.json").read_text())
        assert "errors" not in ended, ended

    monkeypatch.setattr(losses, "_child", child)
    shuffle = grpo_trainer.shuffle_sequence_dict
    monkeypatch.setattr(grpo_trainer, "shuffle_sequence_dict", shuffle)  # put back after it
    return spoilers


@pytest.fixture
def verify(in_process, model_folder, tmp_path, capsys):
    """Verify a recipe of one stage from the command line: (code, JSON, all that is printed)."""

    def run(rows, method="sft", data="jsonl", adapter=LORA, model=None, settings=None, train=None,
            **more):  # fmt: skip
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        stage = {
            "name": "first", "adapter": adapter, "alignment": {"method": method, **more},
            "data": {"method": data, "path": str(tmp_path / "rows.jsonl"), **(settings or {})},
            "train": STEPS | (train or {}),
        }  # fmt: skip
        recipe = {"recipe": 1, "name": "tiny", "output_dir": str(tmp_path / "out"),
                  "model": {"path": str(model_folder), **(model or {})},
                  "stages": [stage]}  # fmt: skip
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(recipe))
        code = main(["verify", "losses", str(path), "--steps", "9", "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out), out + err

    return run


@pytest.mark.parametrize(
    ("rows", "method", "data", "more"),
    [
        (ROWS, "sft", "jsonl", {}),
        (ROWS, "sft", "jsonl", {"adapter": {"method": "full"}, "loss_type": "dft"}),
        (CHATS, "sft", "chat", {"settings": {"learn": "every_token"}}),
        (PAIRS, "dpo", "preference", {"beta": 0.3}),
        (PAIRS, "reward", "preference", {}),
        (PAIRS, "reward", "preference", {"adapter": {"method": "lora", "r": 4}}),
        (JUDGED, "kto", "unpaired", {"beta": 0.3, "undesirable_weight": 1.5}),
        (PAIRS, "kto", "preference", {"loss_type": "apo_zero_unpaired"}),
    ],
    ids=["sft", "full", "chat", "dpo", "reward", "all-linear", "kto", "kto of pairs"],
)
def test_the_first_steps_are_trls(verify, rows, method, data, more):
    model = {"chat_template": TEMPLATE} if data == "chat" else {}
    code, told, err = verify(rows, method, data, model=model, **more)
    assert code == 0, err
    assert told["same"]
    assert told["partings"] == []
    items = 22 if (method, data) == ("kto", "preference") else 11  # it takes a pair's both answers
    steps = items // 4  # whole steps of four rows, in an epoch
    assert told["rows"] == 4 * steps
    assert len(told["losses"]) == steps
    ours, theirs = zip(*told["losses"], strict=True)
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert told["costs"][0]["tokens"] == told["costs"][1]["tokens"] > 50
    assert all(cost["cpu_seconds"] > 0 and cost["peak_mib"] > 50 for cost in told["costs"])
    has_dropout = method == "sft" and "adapter" not in more  # the others switch it off themselves
    assert (told["dropouts"] > 0) == has_dropout


@pytest.mark.parametrize(
    "more",
    [
        {"beta": 0.1, "epsilon": 0.1, "max_completion_length": 60},  # some answers end before
        {"loss_type": "bnpo", "num_generations": 3, "scale_rewards": "none"},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "temperature": 1.5,
         "adapter": {"method": "full"}, "scale_rewards": "batch"},
        {"loss_type": "dr_grpo", "multi_objective_aggregation": "normalize_then_sum"},
        {"loss_type": "cispo", "epsilon_high": 5.0, "entropy_coef": 0.01},
    ],
    ids=["dapo", "bnpo", "gspo", "dr_grpo", "cispo"],
)  # fmt: skip
def test_the_first_steps_on_the_same_answers_are_trls(verify, more):
    settings = {"rewards": REWARDS, "num_generations": 4, "max_completion_length": 9, **more}
    code, told, err = verify(ASKED, "grpo", "prompts", **settings)
    assert code == 0, err
    assert told["rows"] == 2 * 4 * settings["num_generations"]  # two whole steps of four prompts
    ours, theirs = zip(*told["losses"], strict=True)
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    if "max_completion_length" in more:  # else the mean of advantages is nothing but rounding
        assert max(map(abs, ours)) > 1e-3
    ours, theirs = zip(*told["norms"], strict=True)
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert min(ours) > 1e-3


def test_a_policy_that_is_another_one_is_told_by_its_gradient(verify, in_process):
    """The loss of one update is a mean of advantages, whatever the policy."""

    def another_weight(folder: Path) -> None:
        path = folder / first_steps.WEIGHTS
        tensors = load_file(path)
        save_file({n: t + 0.05 * torch.ones_like(t) for n, t in tensors.items()}, path)

    in_process.before = another_weight
    settings = {"rewards": REWARDS, "num_generations": 4, "max_completion_length": 9}
    code, _, err = verify(ASKED, "grpo", "prompts", **settings)
    assert code == 6
    assert "the gradient's norm of step 1 is" in err


def test_another_id_and_another_weight_are_told(verify, in_process, tmp_path):
    def another_id(folder: Path) -> None:
        path = folder / trl_steps.TRL_STEPS
        told = json.loads(path.read_text())
        told["rows"][1]["ids"][0][2] += 1
        path.write_text(json.dumps(told))

    in_process.after = another_id
    code, _, err = verify(ROWS)
    assert code == 6
    assert "E408" in err
    assert "1 of 8 rows have other ids" in err
    assert "at token 2" in err
    kept = list((tmp_path / "out").glob("verify-*/*.json"))
    assert {path.name for path in kept} >= {first_steps.STEPS, trl_steps.TRL_STEPS}

    def another_weight(folder: Path) -> None:
        path = folder / first_steps.WEIGHTS
        tensors = load_file(path)
        save_file({n: t + 0.05 * torch.ones_like(t) for n, t in tensors.items()}, path)

    in_process.before, in_process.after = another_weight, lambda folder: None
    code, _, err = verify(ROWS)
    assert code == 6
    assert "the loss of step 1 is" in err


def test_noise_on_the_embeddings_has_no_counterpart(verify):
    code, told, err = verify(ROWS, train={"neftune_noise_alpha": 5.0})
    assert code == 2, told
    assert "neftune_noise_alpha draws noise" in err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((PAIRS, "orpo", "preference"), "it is compared for sft, dpo, reward"),
        ((ASKED, "grpo", "prompts", LORA, {"num_iterations": 2}), "moves the learning rate"),
        (
            (
                ASKED,
                "grpo",
                "prompts",
                LORA,
                {"stop_token": ".", "mask_truncated_completions": True},
            ),
            "no stop_token",
        ),
        ((ROWS, "sft", "jsonl", {"method": "prompt", "num_virtual_tokens": 4}), "virtual tokens"),
        ((ROWS, "sft", "jsonl", {**LORA, "loraplus_lr_ratio": 4.0}), "learning rate of their own"),
        ((ROWS, "sft", "jsonl", {**LORA, "pure_bf16": True}), "in float32"),
        ((CHATS, "sft", "chat"), "its trainer refuses"),  # a template without generation marks
    ],
)
def test_what_trl_has_no_counterpart_of_is_said(verify, arguments, why):
    model = {"chat_template": TEMPLATE} if arguments[2] == "chat" else {}
    more = {"rewards": REWARDS, **arguments[4]} if len(arguments) > 4 else {}
    code, _, err = verify(*arguments[:4], model=model, **more)
    assert code == 2
    assert "E094" in err
    assert why in err


def test_another_trainer_and_another_stage_are_refused(verify, tmp_path, capsys):
    verify(ROWS)
    path = str(tmp_path / "recipe.yaml")
    assert main(["verify", "losses", path, "--against", "axolotl"]) == 2
    assert "--against trl" in capsys.readouterr().err
    assert main(["verify", "losses", path, "--stage", "second"]) == 2
    assert "first" in capsys.readouterr().err


def test_ids_part_where_they_differ_and_labels_after_them():
    row = {"origin": "rows.jsonl:1", "ids": [[1, 2, 3]], "labels": [[-100, 2, 3]]}
    assert losses.parting(row, row) is None
    shorter = {**row, "ids": [[1, 2]]}
    assert losses.parting(row, shorter) == losses.Parting(
        "rows.jsonl:1", "ids", 2, (1, 2, 3), (1, 2)
    )
    found = losses.parting(row, {**row, "labels": [[1, 2, 3]]})
    assert (found.what, found.at) == ("labels", 0)


def test_code_that_is_trusted_is_trusted_in_the_steps_own_process(monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text("def rows(split):\n    return []\n")
    path = tmp_path / "recipe.yaml"
    data = {"method": "python", "file": str(tmp_path / "mine.py")}
    stage = {"name": "first", "adapter": LORA, "alignment": {"method": "sft"}, "data": data}
    recipe = {"recipe": 1, "name": "tiny", "model": {"path": "embedded:model"}, "stages": [stage]}
    path.write_text(json.dumps(recipe))
    seen = []

    def child(module, order, result):
        trust.revoke_all()  # a process of its own knows of nothing
        first_steps._run(json.loads(order.read_text()))
        seen.append(trust.granted())
        raise InterruptedError

    monkeypatch.setattr(losses, "_child", child)
    monkeypatch.setattr("llmft.engine.session.run_recipe", lambda *what: None)
    job = load_recipe(path, Registry.discover())
    trust.grant([f"file:{tmp_path / 'mine.py'}"])
    before = {name: getattr(StageRunner, name) for name in LISTENED}
    try:
        with pytest.raises(InterruptedError):
            losses.verify_losses(job, job.stages[0], [], tmp_path, 1, lambda said: None)
    finally:
        for name, method in before.items():
            setattr(StageRunner, name, method)
        trust.revoke_all()
    assert seen == [[f"file:{tmp_path / 'mine.py'}"]]
