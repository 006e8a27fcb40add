"""Rows R4, R5, R9, R10, R12, R14 and S1: keys, values, methods, variables and secrets."""

# Tables of recipes read best with one case on one line.
# ruff: noqa: E501

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmft.api.errors import PluginError
from llmft.api.evaluate_settings import EvaluateSettings
from llmft.api.model_settings import ModelSource, Quantization
from llmft.api.train_settings import TrainSettings
from llmft.recipes.blocks import find_blocks
from llmft.recipes.foreign import FOREIGN, REMARKS
from llmft.recipes.recipe import Recipe
from llmft.recipes.tree import Tree, dotted
from llmft.recipes.unknown import answer_unknown
from llmft.recipes.yamlfile import parse
from tests.recipes.fakes import GOOD, FakeRegistry


def blocks_of(text: str):
    return find_blocks(parse(text, "f"), Recipe, FakeRegistry())


MODELS = blocks_of(GOOD).models
FIELDS = sorted(
    {(path, name) for path, model in MODELS.items() for name in model.model_fields}, key=repr
)


@st.composite
def typos(draw):
    """A field of some block, and its name with one edit."""
    path, name = draw(st.sampled_from(FIELDS))
    at = draw(st.integers(0, len(name)))
    letter = draw(st.sampled_from(string.ascii_lowercase + "_"))
    edit = draw(st.sampled_from(["insert", "delete", "replace", "swap"]))
    if edit == "insert":
        wrong = name[:at] + letter + name[at:]
    elif edit == "delete":
        wrong = name[: at - 1] + name[at:] if at else name[1:]
    elif edit == "replace":
        wrong = name[: max(at - 1, 0)] + letter + name[max(at, 1) :]
    else:
        wrong = name[: max(at - 2, 0)] + name[max(at - 2, 0) : at][::-1] + name[at:]
    return path, name, wrong


@settings(max_examples=400, deadline=None)
@given(typos())
def test_r4_one_edit_from_a_key_finds_the_key(case) -> None:
    path, name, wrong = case
    valid = MODELS[path].model_fields
    elsewhere = wrong in FOREIGN or wrong in REMARKS or any(
        wrong in model.model_fields for model in MODELS.values()
    )  # fmt: skip
    if not wrong or wrong in valid or elsewhere:
        return
    code, what, fix = answer_unknown((*path, wrong), MODELS)
    assert code == "E020"
    assert wrong in what
    if len(name) > 3:
        assert f"'{name}'" in fix
    assert fix


@pytest.mark.parametrize(
    ("old", "new", "line", "fix"),
    [
        ("learning_rate", "lerning_rate", 15, "did you mean 'learning_rate'?"),
        ("num_train_epochs", "epochz", 14, None),
        ("      learning_rate", "      lr", 15, "it is called 'learning_rate' here"),
        ("      learning_rate", "      learning-rate", 15, "write 'learning_rate'"),
        ("      learning_rate", "      Learning_Rate", 15, "write 'learning_rate'"),
        ("    train:", "    learning_rate: 1\n    train:", 13, "it belongs under stages[0].train"),
        ("seed: 17", "lr: 17", 3, "it is called 'learning_rate' here, under train in a stage"),
        ("r: 16", "lora_r: 16", 10, "it is called 'r' here"),
        ("r: 16", "num_virtual_tokens: 16", 10, None),
        ("dtype: bf", "load_in_4bit: bf", 6, "it belongs under model.quantization"),
        ("num_train_epochs: 1", "output_dir: 1", 14, "it belongs at the top of the recipe"),
        ("num_train_epochs: 1", "report_to: 1", 14, "it is called 'trackers' here, at the top"),
        ("num_train_epochs: 1", "fp16: true", 14, "write bf16: true"),
        ("num_train_epochs: 1", "num_samples: 1", 14, "it belongs under stages[0].data"),
        ("num_train_epochs: 1", "a.b: 1", 14, "not a path"),
        ("num_train_epochs: 1", "zzzzzzzz: 1", 14, "the keys here are num_train_epochs, "),
    ],
)
def test_r4_an_unknown_key_gets_its_way_out(faults, old: str, new: str, line: int, fix) -> None:
    (fault,) = faults(GOOD.replace(old, new, 1))
    assert (fault.code, fault.place.line) == ("E020", line), fault.line()
    assert fix is None or fix in fault.fix, fault.fix


def test_r4_a_missing_key_is_not_reported_beside_its_foreign_name(faults) -> None:
    (fault,) = faults(GOOD.replace("  path: org/model", "  model_id: org/model"))
    assert (fault.code, fault.fix) == ("E020", "it is called 'path' here")


def test_foreign_names_lead_to_settings_that_exist() -> None:
    models = {
        "train": TrainSettings, "evaluate": EvaluateSettings, "model": ModelSource,
        "model.quantization": Quantization, "": Recipe,
    }  # fmt: skip
    for spelling, ours in FOREIGN.items():
        section, _, name = ours.rpartition(".")
        if section in models:
            assert name in models[section].model_fields, (spelling, ours)
            assert spelling not in models[section].model_fields
        else:
            assert section in ("adapter", "alignment", "data")


SEED_FLAGS = [
    "dataset_name", "dataset_split", "model_id", "output_dir", "load_in_4bit",
    "bnb_4bit_use_double_quant", "bnb_4bit_quant_type", "use_bfloat16", "use_cache",
    "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
    "gradient_checkpointing", "optimizer", "logging_steps", "save_strategy", "learning_rate",
    "max_grad_norm", "warmup_ratio", "lr_scheduler_type", "push_to_hub", "report_to",
    "lora_alpha", "lora_dropout", "lora_r", "lora_bias", "target_modules", "use_dora",
    "dora_ephemeral_gpu_offload", "peft_type", "task_type", "num_virtual_tokens", "token_dim",
    "num_transformer_submodules", "num_attention_heads", "num_layers", "encoder_hidden_size",
]  # fmt: skip


@pytest.mark.parametrize("flag", SEED_FLAGS)
def test_every_flag_of_the_older_scripts_has_an_answer(flag: str) -> None:
    known = any(flag in model.model_fields for model in MODELS.values())
    later = {"num_virtual_tokens", "encoder_hidden_size"}  # adapters' own, under PEFT's names
    assert known or flag in FOREIGN or flag in REMARKS or flag in later


@pytest.mark.parametrize(
    ("key", "point", "fix"),
    [
        ("le\u0430rning_rate", "U+0430", "type 'learning_rate' again"),
        ("learning\u200b_rate", "U+200B", "type 'learning_rate' again"),
        ("\u202elearning_rate", "U+202E", "type 'learning_rate' again"),
        ("ｌearning_rate", "U+FF4C", "type 'learning_rate' again"),
        ("lerning\u00e9_rate", "U+00E9", "did you mean 'learning_rate'?"),
    ],
)
def test_r5_a_lookalike_shows_its_code_point(faults, key: str, point: str, fix: str) -> None:
    (fault,) = faults(GOOD.replace("learning_rate", key))
    assert fault.code == "E027"
    assert point in fault.what
    assert fix in fault.fix
    assert "\u200b" not in fault.line()
    assert "\u202e" not in fault.line()


@pytest.mark.parametrize(
    ("setting", "bound"),
    [
        ("learning_rate: .nan", "finite"), ("learning_rate: .inf", "finite"),
        ("learning_rate: -1e-4", "must be greater than 0, got -1e-4"),
        ("learning_rate: 0", "greater than 0"), ("learning_rate: 1e400", "finite"),
        ("per_device_train_batch_size: 0", "at least 1"),
        ("gradient_accumulation_steps: 0", "at least 1"), ("max_steps: 0", "at least 1"),
        ("max_length: 0", "at least 2"), ("max_length: 1", "at least 2"),
        ("warmup_ratio: 1.5", "less than 1"), ("save_total_limit: 1", "at least 2"),
        ("max_steps: " + "9" * 300, "at most 100,000,000"),
    ],
)  # fmt: skip
def test_r9_a_bound_is_printed(faults, setting: str, bound: str) -> None:
    text = GOOD.replace("learning_rate: 2e-4", "logging_steps: 1")
    text = text.replace("      per_device_train_batch_size: 8\n", "")
    (fault,) = faults(text.replace("num_train_epochs: 1", setting))
    assert fault.code == "E023"
    assert bound in fault.what
    assert fault.fix.startswith("give a")


def test_r9_bounds_of_a_plugins_own_settings_are_printed(faults) -> None:
    (fault,) = faults(GOOD.replace("r: 16", "r: 0"))
    assert fault.line().endswith(
        "stages[0].adapter.r: must be at least 1, got 0"
        " — fix: give a whole number of at least 1 and at most 4,096"
    )
    (fault,) = faults(GOOD.replace("r: 16", "lora_dropout: 1.5"))
    assert "must be less than 1, got 1.5" in fault.what


def test_r9_every_number_of_a_recipe_has_bounds() -> None:
    for path, model in MODELS.items():
        for name, field in model.model_fields.items():
            if field.annotation in (int, float, int | None, float | None):
                kinds = {
                    kind
                    for part in field.metadata
                    for kind in ("gt", "ge", "lt", "le")
                    if hasattr(part, kind)
                }
                assert kinds & {"gt", "ge"}, (path, name)
                assert kinds & {"lt", "le"}, (path, name)
            assert field.description, (path, name)


@pytest.mark.parametrize(
    ("setting", "what", "fix"),
    [
        ("learning_rate: true", "expected a number, got true", ""),
        ('num_train_epochs: "3"', "expected a number, got the text '3'", "write 3 without quotes"),
        ("max_steps: 8.0", "expected a whole number, got 8.0", "write 8"),
        ("max_steps: 8.5", "expected a whole number, got 8.5", ""),
        ("max_steps: true", "expected a whole number, got true", ""),
        ("max_steps: [1]", "expected a whole number, got a list", ""),
        ("packing: 1", "expected true or false, got 1", "write true or false"),
        ("packing: yes", "expected true or false, got the text 'yes'", "write true or false"),
        ("bf16: yes", "must be one of auto, true or false; got 'yes'", "use one of these"),
        ("learning_rate:", "expected a number, got nothing", "default, 0.0002"),
        ("optim: adamw_torc", "must be one of adamw_torch", "did you mean 'adamw_torch'?"),
        ("optim: 3", "must be one of adamw_torch", "use one of these"),
        ("save_strategy: epochs", "must be one of no, epoch, steps; got", "did you mean 'epoch'?"),
    ],
)
def test_r10_a_wrong_type_names_both_types(faults, setting: str, what: str, fix: str) -> None:
    text = GOOD.replace("learning_rate: 2e-4", "logging_steps: 1")
    (fault,) = faults(text.replace("num_train_epochs: 1", setting))
    assert fault.code in ("E022", "E025")
    assert what in fault.what
    assert fix in fault.fix
    assert fault.place.line == 14


@pytest.mark.parametrize(
    ("old", "new", "what", "fix"),
    [
        ("name: rlhf-trivia", "name: 2024", "expected text, got 2024", 'put it in quotes: "2024"'),
        ("name: rlhf-trivia", "name: my run", "letters, digits", "a name such as"),
        ("name: rlhf-trivia", "name: ../x", "letters, digits", ""),
        ("name: rlhf-trivia", "name: " + "x" * 300, "64 at most", ""),
        ("name: rlhf-trivia", 'name: ""', "letters, digits", ""),
        ("name: rlhf-trivia", 'name: "\\ud800"', "surrogate", ""),
        ("recipe: 1", "recipe: 2", "must be 1, got 2", "write 1"),
        ("r: 16", "target_modules: 3", "expected text or a list, got 3", ""),
        ("r: 16", "target_modules: [q, 3]", "expected text, got 3", ""),
        ("split: train", "columns: x", "expected a block of keys, got the text 'x'", ""),
        ("split: train", "columns: {a: 1}", "expected text, got 1", ""),
        ("[exact_match, f1]", "f1", "expected a list, got the text 'f1'", "write a list: [f1]"),
        ("adapter: {method: lora, r: 16, lora_alpha: 32}", "adapter: lora", "a block of settings", "write {method: lora}"),
        ("  - method: console", "  - console", "a block of settings", "write {method: console}"),
        ("quantization: {load_in_4bit: false}", "quantization:", "got nothing", ""),
        ("seed: 17", "seed:", "got nothing", "remove the key for the default, 17"),
    ],
)  # fmt: skip
def test_r10_other_values_that_do_not_fit(faults, old: str, new: str, what: str, fix: str) -> None:
    (fault,) = faults(GOOD.replace(old, new, 1))
    assert what in fault.what, fault.line()
    assert fix in fault.fix, fault.line()


def test_a_missing_key_says_what_it_is(faults) -> None:
    (fault,) = faults(GOOD.replace("path: rows.jsonl, ", ""))
    assert fault.line().endswith("stages[0].data.path: 'path' is missing — fix: add path: the file")
    assert fault.place.line == 12


def test_r12_an_unknown_method_lists_what_is_installed(faults) -> None:
    (fault,) = faults(GOOD.replace("alignment: {method: sft}", "alignment: {method: stf}"))
    assert fault.code == "E024"
    assert "installed: ppo, reward, sft" in fault.what
    assert (fault.path, fault.place.line) == ("stages[0].alignment.method", 11)
    (fault,) = faults(GOOD.replace("alignment: {method: sft}", "alignment: {}"))
    assert (fault.code, fault.fix) == ("E021", "write one of ppo, reward, sft")
    (fault,) = faults(GOOD + "plugins: [timr]\n")
    assert (fault.code, fault.fix) == ("E024", "did you mean 'timer'?")


def test_r12_a_broken_plugin_alone_is_a_plugin_error(load) -> None:
    with pytest.raises(PluginError) as caught:
        load(GOOD.replace("method: console", "method: wandb"))
    (fault,) = caught.value.faults
    assert (fault.code, fault.place.line, caught.value.exit_code) == ("E501", 27, 7)


@pytest.mark.parametrize("value", ["${DATA}/x.jsonl", "a ${HOME:-x} b", "${A_1}"])
def test_r14_a_variable_is_named_and_not_replaced(faults, monkeypatch, value: str) -> None:
    monkeypatch.setenv("DATA", "canary-value")
    (fault,) = faults(GOOD.replace("rows.jsonl", f'"{value}"'))
    assert fault.code == "E051"
    assert "${" in fault.what
    assert "--set" in fault.fix
    assert "canary-value" not in fault.line()
    assert not faults(GOOD.replace("rows.jsonl", '"${field} {x} $HOME"'))


HF, HEX = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567", "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("setting", "secret"),
    [
        (f"output_dir: {HF}", HF), (f"output_dir: x/{HF}/y", HF), (f"wandb: {HEX}", HEX),
        ("x: sk-proj-abcdefghij0123456789", "sk-proj-abcdefghij0123456789"),
        ("x: AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ("hub_token: hunter2", "hunter2"), ("api_key: hunter2", "hunter2"),
        ("password: 12345678", "12345678"), ("wandb_api_key: 'hunter2'", "hunter2"),
        ("output_dir: https://user:hunter2@example.com/x", "hunter2"),
        (f"{HF}: 1", HF), ("x: ghp_abcdefghijklmnopqrstuv0123", "ghp_abcdefghijklmnopqrstuv0123"),
        (f"x: {{{HF}: [lr}}", HF), (f"x: [{HF}", HF), ("api_key: hunter2\n x", "hunter2"),
    ],
)  # fmt: skip
def test_s1_a_secret_is_refused_and_never_printed(faults, setting: str, secret: str) -> None:
    from llmft.cli.commands.render import render_faults

    found = faults(GOOD.replace("seed: 17", setting))
    assert found
    assert found[0].code in ("E050", "E020", "E005"), found[0].line()
    text = render_faults(found) + str([fault.as_json() for fault in found]) + repr(found)
    assert secret not in text
    found = faults(GOOD, [setting.replace(": ", "=", 1)])
    assert found
    assert secret not in render_faults(found) + repr(found)


def test_s1_what_is_no_secret_is_left_alone(load, faults) -> None:
    load(GOOD.replace("dtype: bf", f"revision: {HEX}\n  dtype: bf"))
    load(GOOD.replace("path: org/model", "path: hf_internaltestingmodels/tiny"))
    (fault,) = faults(GOOD.replace("seed: 17", "pad_token: <pad>"))
    assert fault.code == "E020"
    load(GOOD.replace("split: train", f"split: {'a' * 39}"))


def test_dotted_paths_are_on_one_line() -> None:
    assert dotted(("stages", 0, "a\nb\u200b", "c")) == "stages[0].a<U+000A>b<U+200B>.c"
    assert Tree("f").place(("x",)).file == "f"
