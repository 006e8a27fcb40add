"""Every way out, followed to the letter, leads somewhere: with the installed methods, not fakes."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, ValidationError

from llmft.api.errors import LlmftError
from llmft.recipes.load import load_recipe
from llmft.recipes.wording import answer
from llmft.registry.registry import Registry

GOOD = """\
recipe: 1
name: trivia
model: {path: gpt2}
stages:
  - name: sft
    adapter: {method: lora, r: 8}
    alignment: {method: sft}
    data: {method: triviaqa}
    train: {max_steps: 3}
"""


@pytest.fixture(scope="module")
def registry():
    return Registry.discover()


@pytest.fixture
def load(tmp_path, registry):
    def run(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, "utf-8")
        return load_recipe(path, registry).recipe

    return run


@pytest.fixture
def faults(load):
    def run(text):
        with pytest.raises(LlmftError) as caught:
            load(text)
        return caught.value.faults

    return run


class Layers(BaseModel):
    """As a plugin's settings may have it: one word, or a list of names."""

    names: Literal["all-linear"] | list[str] = "all-linear"


@pytest.mark.parametrize(
    ("value", "suggested_fix"),
    [
        ("c_attn", "write a list: [c_attn]"),
        ("c_attn,c_proj", "write a list: [c_attn,c_proj]"),
        ("*attn", 'write a list: ["*attn"]'),
        ("all_linear", "did you mean 'all-linear'?"),
    ],
)
def test_one_name_is_told_to_be_a_list_and_not_to_be_something_else(value, suggested_fix):
    with pytest.raises(ValidationError) as caught:
        Layers(names=value)
    errors = [dict(error) for error in caught.value.errors()]
    code, what, fix = answer(errors, f"'{value}'", Layers.model_fields["names"])
    assert (code, fix) == ("E025", suggested_fix)
    assert what == f"must be one of all-linear, a list; got '{value}'"


def test_a_list_that_is_advised_loads(load, faults):
    (fault,) = faults(GOOD.replace("r: 8", "modules_to_save: '*norm'"))
    assert fault.fix == 'write a list: ["*norm"]'
    load(GOOD.replace("r: 8", 'modules_to_save: ["*norm"]'))


def test_a_choice_beside_other_types_names_them_all(faults):
    (fault,) = faults(GOOD.replace("r: 8", "init_lora_weights: pisa"))
    assert "gaussian, orthogonal, pissa, olora, true or false" in fault.what


def test_a_number_that_should_be_text_is_quoted_as_it_was_written(load, faults):
    (fault,) = faults(GOOD.replace("name: trivia", "name: 1e3"))
    assert fault.fix == 'put it in quotes: "1e3"'
    assert load(GOOD.replace("name: trivia", 'name: "1e3"')).name == "1e3"


@pytest.mark.parametrize(
    ("old", "new", "suggested_fix"),
    [
        ("{path: gpt2}", "gpt2", "write {path: gpt2}"),
        ("stages:", "push_to_hub: me/it\nstages:", "write {repo_id: me/it}"),
        ("stages:", "push_to_hub: true\nstages:", "write {repo_id: ...}"),
        ("stages:", "push_to_hub: false\nstages:", "remove the key"),
        ("{method: triviaqa}", "triviaqa", "write {method: triviaqa}"),
    ],
)
def test_a_value_in_a_blocks_place_is_told_the_key_that_it_belongs_to(
    faults, old, new, suggested_fix
):
    (fault,) = faults(GOOD.replace(old, new))
    assert fault.fix == suggested_fix


def test_a_path_in_a_methods_place_is_not_taken_for_a_method(faults):
    (fault,) = faults(GOOD.replace("{method: triviaqa}", "rows.jsonl"))
    assert fault.fix.startswith("write {method: ...}, with one of chat, ")


def test_another_algorithm_is_asked_about_and_not_prescribed(faults):
    (fault,) = faults(GOOD.replace("method: sft", "method: gdpo"))
    assert fault.fix == "did you mean 'dpo' or 'grpo'?"


@pytest.mark.parametrize(
    ("key", "suggested_fix"),
    [
        ("use_reentrant", "drop it; layers are computed again without reentry"),
        ("eval_delay", "drop it; a stage is scored from the start on"),
        ("use_lora", "write method: lora in the adapter block"),
        ("use_peft", "drop it; what is trained is the stage's adapter"),
        ("use_liger_kernel", "write fused: liger in the model block"),
        ("torch_compile", "write fused: compile in the model block"),
        ("loss_watchdog_threshold", "write {method: loss_watchdog, threshold: ...}"),
        ("assistant_only_loss", "drop it; the loss is on answers."),
    ],
)
def test_a_setting_without_counterpart_is_not_given_the_name_of_a_near_one(
    faults, key, suggested_fix
):
    (fault,) = faults(GOOD.replace("max_steps: 3", f"{key}: 3"))
    assert fault.fix.startswith(suggested_fix)


@pytest.mark.parametrize(
    ("key", "suggested_fix"),
    [
        ("learning_rate", "it belongs under train in a stage"),
        ("max_new_tokens", "it belongs under evaluate in a stage"),
        ("adapter", "it belongs in a stage"),
        ("stage", "write a list under stages; what each optimises stands under its alignment"),
    ],
)
def test_a_flat_file_is_told_where_its_settings_belong(faults, key, suggested_fix):
    unknown = next(fault for fault in faults(f"{key}: 1\n") if fault.code == "E020")
    assert unknown.fix == suggested_fix


def test_a_key_that_must_be_there_is_not_to_be_dropped(faults):
    (fault,) = faults(GOOD[: GOOD.index("  - name")])
    assert (fault.code, fault.fix) == ("E022", "write a value")
    assert "got nothing" in fault.what


def test_a_colon_without_a_space_is_seen(faults):
    unknown = next(f for f in faults(GOOD.replace("path: gpt2", "path:gpt2")) if f.code == "E020")
    assert unknown.fix == "write a space after the colon"


def test_a_bracket_that_is_not_closed_is_named_with_its_line(faults):
    (fault,) = faults(GOOD.replace("{path: gpt2}", "{path: gpt2"))
    assert "opened on line 3" in fault.what
    assert fault.fix == "close the bracket, or write a comma between its items"
