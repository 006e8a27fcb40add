"""KTO by hand, against TRL, and from a recipe to an adapter."""

from __future__ import annotations

import json
import math

import pytest
import torch
from llmft_alignments import kto as module
from llmft_alignments.kto import Kto, KtoItem, KtoObjective, balance_note, mismatched
from llmft_alignments.pairs import row_logps
from llmft_alignments.preference_maths import kto_loss

from llmft.api import ChatRow, Encoded, PreferenceRow, UnpairedRow
from llmft.api.errors import DataError, LlmftError
from llmft.api.train_settings import TrainSettings
from llmft.data.encoding import Encoder
from llmft.data.unpaired_encoding import encode_unpaired
from llmft.evaluation.evaluation import as_answered
from llmft.modeling.tiny_models import tiny_llama, tiny_tokenizer
from llmft.testing import AlignmentContract

from .conftest import PAIRS, metrics_of
from .test_trl_preference_referee import COMMON, packed, same_gradients

ANSWERS = [
    {"prompt": "Q: the capital of France?", "completion": " Paris", "label": True},
    {"prompt": "Q: 2+2?", "completion": " five", "label": False},
    {"prompt": "Name a planet.", "completion": " Neptune", "label": True},
    {"prompt": "Say yes or no.", "completion": " nobody knows", "label": False},
    {"prompt": "Name a town.", "completion": " Oslo, say", "label": True},
]


class TestKto(AlignmentContract):
    method_class = Kto
    configs = [{}, {"loss_type": "apo_zero_unpaired"}, {"undesirable_weight": 0.0, "beta": 0.3}]


def encoded(rows, limit=256, **settings):
    encoder = Encoder(tiny_tokenizer(pad=True), limit)
    return encode_unpaired(encoder, rows, TrainSettings(**settings))[0]


# --- the loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_loss_by_hand():
    ratio, label = torch.tensor([0.5, -2.0]), torch.tensor([1.0, 0.0])
    expected = [1 - sigmoid(0.3 * (0.5 - 0.25)), 1 - sigmoid(0.3 * (0.25 + 2))]
    assert kto_loss(ratio, label, 0.25, 0.3).tolist() == pytest.approx(expected)
    ratio = ratio.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: kto_loss(r, label, 0.25, 0.3), (ratio,))


ROW = Encoded((1, 2, 3), (-100, 2, 3), "row")


@pytest.mark.parametrize("others", [(1.0, 0.0), (-5.0, 1.0)])
def test_metrics_are_means_over_the_answers_they_are_about(monkeypatch, others):
    """Log-ratios of 1, -2 and 3; the KL estimate is at least 0."""
    logps = {True: torch.tensor([-1.0, -4.0, -1.0]), False: torch.tensor([*others, 0.5])}
    monkeypatch.setattr(module, "row_logps", lambda model, rows: logps[rows[0] is items[0]])
    items = [
        KtoItem(ROW.input_ids, ROW.labels, "row", label, reference, ROW, 0.0)
        for label, reference in ((True, -2.0), (False, -2.0), (False, -4.0))
    ]
    objective = KtoObjective(Kto.Config(method="kto", beta=0.5))
    loss, metrics = objective.loss(None, items)
    kl = max(0.0, (sum(others) + 0.5) / 3)
    expected = sum(1 - sigmoid(0.5 * gap) for gap in (1 - kl, kl + 2, kl - 3))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert objective.weight(items) == 3
    assert float(metrics["kl"]) == pytest.approx(3 * kl)
    assert float(metrics["rewards/accuracies"]) == 2  # the third is likelier, and undesirable
    found = {name: (float(s), n) for name, (s, n) in
             ((k, v) for k, v in metrics.items() if isinstance(v, tuple))}  # fmt: skip
    assert found == {
        "rewards/chosen": (0.5, 1.0), "logps/chosen": (-1.0, 1.0),
        "rewards/rejected": (0.5, 2.0), "logps/rejected": (-5.0, 2.0),
    }  # fmt: skip
    assert metrics["tokens"] == 9
    alone, noted = objective.loss(None, items)[1], items[:1]
    assert "rewards/rejected" in alone
    logps[True], logps[False] = logps[True][:1], logps[False][:1]
    assert "rewards/rejected" not in objective.loss(None, noted)[1]


def rows_of(prompts: str) -> list[Encoded]:
    """Return a row for each letter: two tokens of prompt, and an answer of its own number."""
    return [
        Encoded((9, ord(letter), 100 + n, 7), (-100, -100, 100 + n, 7), f"row {n}")
        for n, letter in enumerate(prompts)
    ]


@pytest.mark.parametrize(
    ("prompts", "donors"),
    [
        ("abcd", [3, 0, 1, 2]),
        ("aabb", [2, 3, 0, 1]),
        ("abca", [2, 3, 0, 1]),  # the last is the first one's neighbour, and has its prompt
        ("aaa", [2, 0, 1]),  # there is no other prompt
        ("a", [0]),
    ],
)
def test_a_mismatched_answer_belongs_to_another_prompt(prompts, donors):
    rows = rows_of(prompts)
    for row, other, donor in zip(rows, mismatched(rows, None, None), donors, strict=True):
        assert other.input_ids == (*row.input_ids[:2], 100 + donor, 7)
        assert other.labels == (-100, -100, 100 + donor, 7)
        if len(set(prompts)) > 1:
            assert prompts[donor] != chr(row.input_ids[1])


def test_a_mismatched_row_too_long_loses_the_start_of_its_prompt():
    long, short = (
        Encoded((9, 5, 6, 7), (-100, -100, -100, 7)),
        Encoded((9, 1, 2, 3), (-100, 1, 2, 3)),
    )
    one, other = mismatched([long, short], 5, 9)
    assert (one.input_ids, one.labels) == ((9, 6, 1, 2, 3)[:5], (-100, -100, 1, 2, 3))
    assert other.input_ids == (9, 7)
    assert mismatched([long, short], 5, None)[0].input_ids == (5, 6, 1, 2, 3)


def test_the_balance_of_labels_is_remarked_on_as_by_trl():
    config = Kto.Config(method="kto")
    assert balance_note(config, [True, False]) == ""
    assert balance_note(config, [True] * 4 + [False] * 3) == ""  # 4/3
    assert "desirable_weight 3.00 to 4.00" in balance_note(config, [True] + [False] * 3)
    weighted = Kto.Config(method="kto", desirable_weight=3.5)
    assert balance_note(weighted, [True] + [False] * 3) == ""
    assert "weigh 2.00 to 1" in balance_note(config, [True] * 2 + [False])
    assert "all answers are desirable" in balance_note(config, [True])


@pytest.mark.extended
def test_a_plan_that_looks_at_few_rows_tells_the_balance_of_all(tmp_path, model_folder, stage):
    from llmft.planning.planner import plan_recipe
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry

    rows = [{**row, "completion": row["completion"] * 9} if row["label"] else row
            for row in ANSWERS[:4] * 8]  # fmt: skip
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    remarks = []
    for options in ({}, {"desirable_weight": 4.0}):
        block = stage("kto", options=options, evaluate=None)
        block["data"] = {"method": "unpaired", "path": str(path)}
        data = {"recipe": 1, "name": "tiny", "model": {"path": str(model_folder)},
                "stages": [block]}  # fmt: skip
        (tmp_path / "recipe.yaml").write_text(json.dumps(data))
        job = load_recipe(tmp_path / "recipe.yaml", Registry.discover())
        remarks.append("; ".join(plan_recipe(job).stages[0].remarks))
    assert "desirable" not in remarks[0]
    assert "16 answers are desirable and 16 are not" in remarks[1]


def test_weights_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match="both 0, so that nothing is"):
        Kto.Config(method="kto", desirable_weight=0.0, undesirable_weight=0.0)


# --- rows


def test_preferences_become_good_answers_and_then_bad_ones():
    rows = [PreferenceRow("a", "b", "c", None, "r1"), PreferenceRow("d", "e", "f", None, "r2")]
    found = [(row.origin, row.label) for row in encoded(rows)]
    assert found == [("r1", True), ("r2", True), ("r1", False), ("r2", False)]


def test_a_row_too_long_loses_its_prompts_start_and_no_answer():
    row = UnpairedRow("x" * 20, "yes", False, origin="r")
    (whole,) = encoded([row])
    (cut,) = encoded([row], limit=10)
    assert cut.input_ids == whole.input_ids[-10:]
    assert (cut.n_labels, cut.label, cut.origin) == (whole.n_labels, False, "r")
    for limit, rule, code in ((10, "fail", "E106"), (10, "drop", "E105"), (3, "truncate", "E105")):
        with pytest.raises(DataError) as caught:
            encoded([row], limit=limit, on_long_row=rule)
        assert caught.value.faults[0].code == code


def test_rows_without_a_label_are_refused():
    with pytest.raises(DataError, match="a ChatRow has no label"):
        encoded([ChatRow(({"role": "user", "content": "a"},))])


def test_the_loss_of_held_out_rows_is_that_of_good_answers():
    good, bad = (UnpairedRow("a", label, label == "yes") for label in ("yes", "no"))
    assert [row.completion for row in as_answered([bad, good])] == ["yes"]
    with pytest.raises(DataError, match="no row to score on has a good answer"):
        as_answered([bad])


# --- TRL


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_loss_and_gradient_are_trls(tmp_path, loss_type):
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    args = KTOConfig(
        output_dir=str(tmp_path), beta=0.3, loss_type=loss_type, **weights,
        **COMMON | {"per_device_train_batch_size": 5},
    )  # fmt: skip
    tokenizer = tiny_tokenizer(pad=True)
    trainer = KTOTrainer(
        model=tiny_llama(), ref_model=tiny_llama(1), args=args, processing_class=tokenizer,
        train_dataset=Dataset.from_list(ANSWERS),
    )  # fmt: skip
    rows = encoded([UnpairedRow(**row) for row in ANSWERS])
    others = mismatched(rows, 128, tokenizer.bos_token_id)
    for row, other, theirs in zip(rows, others, trainer.train_dataset, strict=True):
        assert list(row.input_ids) == theirs["prompt_ids"] + theirs["completion_ids"]
        if loss_type == "kto":
            assert list(other.input_ids) == theirs["prompt_ids"] + theirs["KL_completion_ids"]
    theirs = trainer.model.train()
    loss = trainer.compute_loss(theirs, trainer.data_collator(list(trainer.train_dataset)))
    loss.backward()
    with torch.no_grad():
        own, mixed = (row_logps(tiny_llama(1), some).tolist() for some in (rows, others))
    batch = [
        KtoItem(row.input_ids, row.labels, row.origin, row.label, start,
                other if loss_type == "kto" else None, mean)
        for row, start, other, mean in zip(rows, own, others, mixed, strict=True)
    ]  # fmt: skip
    config = Kto.Config(method="kto", beta=0.3, loss_type=loss_type, **weights)
    model, objective = packed(tiny_llama().train()), KtoObjective(config)
    mine, metrics = objective.loss(model, batch)
    mine = mine / objective.weight(batch)
    mine.backward()
    torch.testing.assert_close(mine, loss, atol=1e-6, rtol=1e-6)
    same_gradients(model, theirs)
    for name in ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"):
        total, count = metrics[name]
        (told,) = trainer._metrics["train"][name]
        assert float(total) / count == pytest.approx(told, rel=1e-5, abs=1e-5), name
    if loss_type == "kto":
        (kl,) = trainer._metrics["train"]["kl"]
        assert kl > 0
        assert float(metrics["kl"]) / 5 == pytest.approx(kl, rel=1e-5)


# --- runs


def test_kto_trains_on_preferences_and_scores_by_label(run, stage):
    kto = stage("kto", options={"beta": 0.3})
    kto["train"] |= {"max_steps": 12, "per_device_train_batch_size": 8}
    summary = run(kto)
    result, lines = summary.stages["kto"], metrics_of(summary, "kto")
    assert lines[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert lines[-1]["loss"] < 0.5
    assert {"rewards/chosen", "rewards/rejected", "rewards/accuracies"} <= lines[-1].keys()
    before, after = result.before, result.after
    assert (before["reward_accuracy"], before["reward_margin"]) == (0.0, 0.0)
    assert before["objective_loss"] == pytest.approx(0.5, abs=1e-6)
    assert after["objective_loss"] < 0.5
    assert after["reward_margin"] > 0.0
    assert after["reward_accuracy"] > 0.5
    both = [after[f"reward_accuracy_{name}"] for name in ("desirable", "undesirable")]
    assert after["reward_accuracy"] == pytest.approx(sum(both) / 2)
    rows = json.loads((summary.folder / "stages/kto/scores.json").read_text())
    assert len(rows["after"]["reward_accuracy"]) == 2 * len(
        rows["after"]["reward_accuracy_desirable"]
    )


def test_kto_trains_on_labelled_answers_of_a_file(run, stage, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ANSWERS * 2))
    data = {"method": "unpaired", "path": str(path)}
    summary = run(
        stage("kto", data=data, evaluate=None, options={"loss_type": "apo_zero_unpaired"})
    )
    lines = metrics_of(summary, "kto")
    assert lines[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert "kl" not in lines[0]
    with pytest.raises(LlmftError, match="'unpaired' gives unpaired rows"):
        run(stage("dpo", data=data, evaluate=None))


def test_pairs_of_the_conftest_are_those_that_trl_unpairs():
    from datasets import Dataset
    from trl.data_utils import unpair_preference_dataset

    theirs = unpair_preference_dataset(Dataset.from_list(PAIRS))
    rows = encoded([PreferenceRow(**pair) for pair in PAIRS])
    tokens = [row.input_ids for row in encoded([UnpairedRow(**row) for row in theirs])]
    assert [row.input_ids for row in rows] == tokens
    assert [row.label for row in rows] == theirs["label"]
