"""What a plugin gives that its contract does not allow: one error, with its name."""

from __future__ import annotations

import pytest

from llmft.cli.main import main
from tests.end_to_end.faults import conftest as faults

install, recipe_file = faults.install, faults.recipe_file

ALIGNMENT = """
from llmft.api import Alignment, AlignmentConfig, StageResult, hookimpl
from llmft.toolkit import label_nll

class Objective:
    def weight(self, batch):
        return WEIGHT

    def loss(self, model, batch):
        found = label_nll(model, batch)
        loss = found.nll_N.sum()
        return LOSS

class Theirs(Alignment[AlignmentConfig]):
    method = "theirs"
    Config = AlignmentConfig
    rows = ("completion",)

    def smoke_overrides(self):
        return SMALL

    def parameter_groups(self, model, train):
        return GROUPS

    def evaluate(self, context):
        return SCORES

    def train(self, context):
        items = context.data.encode(context.data.rows())
        result = context.fit(ITEMS, Objective())
        return RESULT

@hookimpl
def llmft_alignments():
    return [Theirs]
"""
RIGHT = {
    "WEIGHT": "float(len(batch))", "LOSS": "loss, {}", "SMALL": "{}", "GROUPS": "()",
    "SCORES": "{}", "ITEMS": "items", "RESULT": "result",
}  # fmt: skip
WRONG = {
    "a weight of 0": ("WEIGHT", "0.0", "the weight of a batch is 0.0"),
    "a weight of nan": ("WEIGHT", "float('nan')", "the weight of a batch is nan"),
    "no weight": ("WEIGHT", "None", "the weight of a batch is None"),
    "no loss": ("LOSS", "None", "'loss' returns None, not (loss, metrics)"),
    "a loss alone": ("LOSS", "loss", "'loss' returns a 'Tensor'"),
    "a loss of each token": ("LOSS", "(found.nll_N, {})", "the loss has the shape"),
    "a loss that is a float": ("LOSS", "(2.5, {})", "the loss is 2.5, not a tensor"),
    "a detached loss": ("LOSS", "(loss.detach(), {})", "does not depend on what is trained"),
    "no metrics": ("LOSS", "(loss, None)", "metrics are None"),
    "a metric of each token": ("LOSS", "(loss, {'nll': found.nll_N})", "the metric 'nll' is"),
    "groups of nothing": ("GROUPS", "None", "'parameter_groups' returns None"),
    "no scores": ("SCORES", "None", "'evaluate' returns None"),
    "a score that is nan": ("SCORES", "{'wins': float('nan')}", "gives 'wins' as nan"),
    "no result": ("RESULT", "None", "'train' returns None, not a StageResult"),
    "another product": ("RESULT", "StageResult('poem')", "made 'poem', its class 'policy'"),
}


def source(template: str, right: dict[str, str], **changes: str) -> str:
    for name, text in (right | changes).items():
        template = template.replace(name, text)
    return template


def theirs(recipe_file, install, **changes: str) -> str:
    install(source(ALIGNMENT, RIGHT, **changes), "llmft.alignments", "theirs")
    return str(
        recipe_file(
            alignment={"method": "theirs"},
            train={"max_steps": 1},
            evaluate={"metrics": [], "holdout": 0.2},
        )
    )


def assert_blamed(capsys, kind: str, said: str) -> None:
    error = capsys.readouterr().err
    assert error.startswith("error[E502] ")  # the recipe's line follows where it is known
    assert (
        f"the {kind} 'theirs' (llmft-theirs 1.2) breaks the contract: " in error.partition("\n")[0]
    )
    assert said in error


def test_an_alignment_that_keeps_to_its_contract_trains(recipe_file, install):
    assert main(["run", theirs(recipe_file, install), "--quiet"]) == 0


@pytest.mark.parametrize("case", WRONG)
def test_what_an_alignment_gives_wrong_is_told_with_its_distribution(
    case, recipe_file, install, capsys
):
    name, text, said = WRONG[case]
    assert main(["run", theirs(recipe_file, install, **{name: text}), "--quiet"]) == 7
    assert_blamed(capsys, "alignment", said)


def test_a_stage_without_items_says_so(recipe_file, install, capsys):
    assert main(["run", theirs(recipe_file, install, ITEMS="[]"), "--quiet"]) == 3
    assert "E105] stage 'sft' has no rows left to train on" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["None", "{'no_such': 1}"])
def test_wrong_settings_for_a_smoke_run_are_told(text, recipe_file, install, capsys):
    assert main(["run", theirs(recipe_file, install, SMALL=text), "--smoke", "--quiet"]) == 7
    assert "(llmft-theirs 1.2) breaks the contract: 'smoke_overrides'" in capsys.readouterr().err


ADAPTER = """
from llmft_adapters.lora import Lora
from llmft.api import hookimpl

class Theirs(Lora):
    method = "theirs"

    def virtual_tokens(self):
        return VIRTUAL

    def check(self, model):
        return CHECK

    def attach(self, model):
        model = super().attach(model)
        return MODEL

@hookimpl
def llmft_adapters():
    return [Theirs]
"""
PLAIN = {"VIRTUAL": "0", "CHECK": "()", "MODEL": "model"}
WRONG_ADAPTERS = {
    "tokens in words": ("VIRTUAL", "'many'", "'virtual_tokens' returns 'many'"),
    "no check": ("CHECK", "None", "'check' returns None"),
    "a key that is a text": ("CHECK", "[('r', 'bad', 'mend it')]", "'check' yields ('r', 'bad'"),
    "no model": ("MODEL", "None", "'attach' returns None, not a model"),
    "nothing to train": ("MODEL", "model.requires_grad_(False)", "no parameter requires grad"),
}


@pytest.mark.parametrize("case", WRONG_ADAPTERS)
def test_what_an_adapter_gives_wrong_is_told_with_its_distribution(
    case, recipe_file, install, capsys
):
    name, text, said = WRONG_ADAPTERS[case]
    install(source(ADAPTER, PLAIN, **{name: text}), "llmft.adapters", "theirs")
    assert main(["run", str(recipe_file(adapter={"method": "theirs"})), "--quiet"]) == 7
    assert_blamed(capsys, "adapter", said)


DATASET = """
from llmft_datasets.jsonl import Jsonl
from llmft.api import CompletionRow, hookimpl

class Theirs(Jsonl):
    method = "theirs"
    metrics = {"exact_match": lambda answer, right: METRIC}

    def records(self, split):
        found = super().records(split)
        return RECORDS

    def row(self, record, origin):
        row = super().row(record, origin)
        return ROW

@hookimpl
def llmft_datasets():
    return [Theirs]
"""
HONEST = {"METRIC": "1.0", "RECORDS": "found", "ROW": "row"}
WRONG_DATA = {
    "no records": ("RECORDS", "None", "'records' returns None"),
    "records without origins": ("RECORDS", "(r for _, r in found)", "'records' yields a 'dict'"),
    "no row": ("ROW", "None", "'row' returns None"),
    "a plain record": ("ROW", "record", "'row' returns a 'dict'"),
    "a number for text": ("ROW", "CompletionRow('say', 7)", "the row's completion is 7, not text"),
    "a metric without a score": ("METRIC", "None", "the metric 'exact_match' returns None"),
}


@pytest.mark.parametrize("case", WRONG_DATA)
def test_what_a_data_set_gives_wrong_is_told_with_its_distribution(
    case, recipe_file, install, capsys
):
    name, text, said = WRONG_DATA[case]
    install(source(DATASET, HONEST, **{name: text}), "llmft.datasets", "theirs")
    judged = {"metrics": ["exact_match"], "holdout": 0.2, "max_new_tokens": 2}
    path = recipe_file(data={"method": "theirs"}, train={"max_steps": 1}, evaluate=judged)
    assert main(["run", str(path), "--quiet"]) == 7
    assert_blamed(capsys, "dataset", said)
