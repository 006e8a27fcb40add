"""Rows R11, R13, R15: what cannot work together, and how stages refer to each other."""

# Tables of recipes read best with one case on one line.
# ruff: noqa: E501

from __future__ import annotations

import importlib.util

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmft.api.errors import EnvironmentFault, LlmftError, RecipeError
from llmft.recipes import checks, training_methods
from llmft.recipes.load import load_recipe
from tests.recipes.fakes import GOOD, FakeRegistry, Jsonl, Lora


def only(found, code: str):
    assert [fault.code for fault in found] == [code], "\n".join(f.line() for f in found)
    return found[0]


TRAIN = "      learning_rate: 2e-4"
PREFIX = GOOD.replace("{method: lora, r: 16, lora_alpha: 32}", "{method: prefix}")


@pytest.mark.parametrize(
    ("text", "code", "lines", "words"),
    [
        (PREFIX.replace(TRAIN, "      gradient_checkpointing: true"), "E041", (10, 15), "prefix"),
        (PREFIX.replace(TRAIN, "      packing: true\n      max_length: 9"), "E041", (10, 15), "packing"),
        (PREFIX.replace("load_in_4bit: false", "load_in_8bit: true"), "E041", (7, 10), "quantised"),
        (GOOD.replace("    start_from: sft\n", "    start_from: sft\n    train:\n      packing: true\n      max_length: 9\n"), "E041", (25, 27), "alignment cannot"),
        (GOOD.replace("kind: preference", "kind: completion"), "E042", (20, 21), "preference rows"),
        (GOOD.replace("dtype: bfloat16", "dtype: float16").replace(TRAIN, "      bf16: true"), "E040", (6, 15), "bfloat16"),
        (GOOD.replace(TRAIN, "      warmup_steps: 3\n      warmup_ratio: 0.1"), "E040", (15, 16), "exclude"),
        (GOOD.replace(TRAIN, "      learning_rate: 1e-7\n      lr_scheduler_type: polynomial"), "E040", (15, 16), "decays to 1e-7"),
        (GOOD.replace("{load_in_4bit: false}", "\n      load_in_4bit: true\n      load_in_8bit: true"), "E040", (8, 9), "exclude"),
        (GOOD.replace("limit: 500", "split: a,\n      holdout: 0.1"), "E040", (17, 18), "exclude"),
    ],
)  # fmt: skip
def test_r11_a_contradiction_names_both_lines(faults, text: str, code: str, lines, words) -> None:
    fault = only(faults(text), code)
    assert fault.what.endswith(f"(lines {lines[0]} and {lines[1]})"), fault.line()
    assert fault.place.line in lines
    assert words in fault.what
    assert fault.fix


def test_rows_that_are_no_plain_text_cannot_be_cut_into_pieces(faults) -> None:
    packed = "      packing: true\n      max_length: 9\n      packing_strategy: wrapped"
    for setting, train in (
        ("packing_strategy", packed),
        ("on_long_row", "      on_long_row: split"),
    ):
        fault = only(faults(GOOD.replace(TRAIN, train)), "E041")
        assert "cuts plain text, and 'jsonl' gives completion rows" in fault.what
        assert fault.fix.startswith(f"drop {setting}")


def test_chunks_whose_texts_see_each_other_need_no_rows_kept_apart(faults) -> None:
    crossing = "      packing: true\n      max_length: 9\n      packing_strategy: wrapped\n"
    text = PREFIX.replace(TRAIN, crossing + "      cross_document_attention: true")
    assert [f.what for f in faults(text) if "prefix" in f.what] == []
    assert [f.what for f in faults(PREFIX.replace(TRAIN, crossing)) if "prefix" in f.what] != []


def test_a_length_of_prompts_is_refused_where_no_pairs_are_read(faults) -> None:
    text = GOOD.replace(TRAIN, f"{TRAIN}\n      max_prompt_length: 9")
    found = [fault for fault in faults(text) if "max_prompt_length" in fault.what]
    assert [(fault.code, "'sft' reads none" in fault.what) for fault in found] == [("E041", True)]


STREAMED = "{method: jsonl, path: rows.jsonl, streaming: true}"
STEPS = TRAIN, "      max_steps: 5"


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ([("limit: 500", "limit: 5")], "E040", "no end that is known, and max_steps is not set"),
        ([STEPS, ("limit: 500", "holdout: 0.1")], "E040", "holdout takes its rows from all of them"),
        ([STEPS, (", limit: 500", "")], "E040", "all rows of the held-out split would be read"),
        ([STEPS, ("limit: 500", "limit: 5, eval_strategy: epoch")], "E040", "eval_strategy: epoch"),
        ([(TRAIN, STEPS[1] + "\n      save_strategy: epoch")], "E040", "save_strategy: epoch"),
        ([STEPS, ("streaming: true", 'streaming: true, split: "train[:20%]"')], "E040",
         "counts all rows"),
        ([STEPS, ("streaming: true", "streaming: true, drop: {duplicates: true}")], "E040",
         "compares all of the data"),
        ([STEPS, ("streaming: true", "buffer_size: 7")], "E040", "about streamed rows"),
        ([STEPS, ("{method: jsonl, path: hh.jsonl, kind: preference}",
                  "{method: jsonl, path: hh.jsonl, kind: preference, streaming: true}\n"
                  "    train: {max_steps: 3}")], "E041", "'reward' cannot work with streamed rows"),
    ],
)  # fmt: skip
def test_what_needs_all_rows_is_refused_of_streamed_ones(faults, changes, code, words) -> None:
    text = GOOD.replace("{method: jsonl, path: rows.jsonl, split: train}", STREAMED)
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    found = [fault for fault in faults(text) if words in fault.what]
    assert [fault.code for fault in found] == [code]
    assert found[0].fix


def test_streamed_rows_with_steps_and_a_limit_are_fine(faults) -> None:
    text = GOOD.replace("{method: jsonl, path: rows.jsonl, split: train}", STREAMED)
    text = text.replace(*STEPS)
    assert [fault.what for fault in faults(text) if "stream" in fault.what] == []


@pytest.mark.parametrize("setting", ["optim: adamw_8bit", "optim: paged_adamw_32bit"])
def test_r11_a_missing_package_is_the_machines_fault(load, monkeypatch, setting: str) -> None:
    monkeypatch.setattr(training_methods, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault) as caught:
        load(GOOD.replace(TRAIN, "      " + setting))
    assert caught.value.exit_code == 4
    assert "bitsandbytes" in only(caught.value.faults, "E206").what


def test_r11_qlora_asks_for_its_package_by_what_it_declares(faults, monkeypatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    qlora = GOOD.replace("method: lora, r: 8", "method: qlora, r: 8")
    assert only(faults(qlora), "E206").place.line == 19
    monkeypatch.setattr(checks, "find_spec", importlib.util.find_spec)
    assert not faults(qlora)


def test_r11_a_metric_that_nobody_brings_is_named(faults) -> None:
    fault = only(faults(GOOD.replace("exact_match", "exact_mach")), "E043")
    assert fault.fix == "did you mean 'exact_match'?"
    assert "loss, perplexity, exact_match, f1" in fault.what


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("reward_model: reward", "reward_model: rewrad", "E030", "no earlier stage is called 'rewrad' (have: sft, reward)"),
        ("start_from: sft", "start_from: sfd", "E030", "'sfd'"),
        ("start_from: sft", "start_from: ppo", "E031", "refers to itself"),
        ("    alignment: {method: sft}", "    start_from: reward\n    alignment: {method: sft}", "E031", "'reward' comes later than 'sft'"),
        ("start_from: sft", "start_from: reward", "E033", "produces a reward model, and a policy is needed"),
        ("reward_model: reward", "reward_model: sft", "E033", "produces a policy, and a reward model"),
        ("    start_from: sft\n", "", "E034", "neither an adapter nor start_from"),
        ("start_from: sft", "start_from: run:x", "E035", "'run:x'"),
        ("start_from: sft", "start_from: run:../../etc/x", "E035", "run:"),
        ("start_from: sft", "start_from: run:../sft", "E035", "run:"),
        ("start_from: sft", f"start_from: run:{'x' * 300}/sft", "E035", "run:"),
        ("start_from: sft", "start_from: sft\n    adapter: {method: lora, r: 9}", "E034", "'r' is not what stage 'sft' has"),
        ("start_from: sft", "start_from: sft\n    adapter: {method: prefix}", "E034", "'method' is not"),
        ("start_from: sft", "start_from: {stage: sfd, merge: true}\n    adapter: {method: lora}", "E030", "'sfd'"),
        ("start_from: sft", "start_from: {stage: reward, merge: true}\n    adapter: {method: lora}", "E033", "a policy is needed"),
        ("start_from: sft", "start_from: {stage: sft}\n    adapter: {method: prefix}", "E034", "'method' is not"),
        ("start_from: sft", "start_from: {stage: sft, merge: true}", "E034", "nothing stands on what is merged"),
        ("start_from: sft", "start_from: {stage: sft, merge: true}\n    adapter: {method: qlora}", "E041", "'qlora' adapter quantises the base"),
        ("start_from: sft", "start_from: {stage: sft, merges: true}\n    adapter: {method: lora}", "E020", "unknown key 'merges'"),
        ("start_from: sft", "start_from: {merge: true}\n    adapter: {method: lora}", "E021", "'stage' is missing"),
        ("name: reward\n", "name: sft\n", "E032", "2 stages are called 'sft' (lines 9 and 18)"),
        ("name: reward\n", "name: SFT\n", "E032", "'SFT' is 'sft' but for capitals"),
    ],
)  # fmt: skip
def test_r13_a_reference_that_cannot_be(faults, old: str, new: str, code: str, words: str) -> None:
    text = GOOD.replace(old, new, 1)
    if code == "E032":
        text = text.replace("reward_model: reward", "reward_model: run:a/b")
    fault = only(faults(text), code)
    assert words in fault.what, fault.line()
    assert fault.place.line
    assert fault.fix


@pytest.mark.parametrize(
    "new",
    [
        "start_from: run:2025.01-x_1/sft",
        "start_from: sft\n    adapter: {method: lora, r: 16, lora_alpha: 32}",
        "start_from: {stage: sft}",
        "start_from: {stage: sft, merge: true}\n    adapter: {method: lora, r: 9}",
        "start_from: {stage: run:x/sft, merge: true}\n    adapter: {method: prefix}",
    ],
)
def test_r13_what_may_be_referred_to(load, new: str) -> None:
    load(GOOD.replace("start_from: sft", new))


PLATEAU = TRAIN + "\n      lr_scheduler_type: reduce_lr_on_plateau"
SCORED = "{metrics: [loss], holdout: 0.1, eval_strategy: epoch}"


@pytest.mark.parametrize(
    ("evaluate", "scored"),
    [
        (SCORED, True),
        (SCORED.replace("epoch", "'no'"), False),
        (SCORED.replace("loss", "f1"), False),
        (
            SCORED.replace("loss", "f1").replace(
                "epoch", "epoch, metric_for_best_model: f1, generate_every: 1"
            ),
            True,
        ),
    ],
)
def test_r11_a_plateau_needs_a_score_during_training(faults, evaluate: str, scored: bool) -> None:
    text = GOOD.replace(TRAIN, PLATEAU)
    text = text.replace("{metrics: [exact_match, f1], limit: 500}", evaluate)
    if scored:
        assert not faults(text)
    else:
        fault = only(faults(text), "E040")
        assert (fault.path, fault.place.line) == ("stages[0].train.lr_scheduler_type", 16)
        assert "'reduce_lr_on_plateau' follows the loss" in fault.what


@pytest.mark.parametrize(
    ("new", "code", "words"),
    [
        ("'peft:'", "E035", "no folder or hub id follows 'peft:'"),
        ("'peft: '", "E035", "no folder or hub id follows 'peft:'"),
        ("{stage: peft:a/b, merge: true}\n    adapter: {method: lora}", "E034", "cannot be merged here"),
        ("peft:a/b", "E034", "has no adapter block"),
        ("peft:a/b\n    adapter: {method: lora}", "", ""),
    ],
)  # fmt: skip
def test_r13_an_adapter_from_elsewhere_is_named_and_described(faults, new, code, words) -> None:
    found = faults(GOOD.replace("start_from: sft", f"start_from: {new}"))
    if code:
        assert words in only(found, code).what
    else:
        assert not found


def test_r11_a_merge_needs_an_adapter_and_a_base_that_can(faults) -> None:
    merged = "start_from: {stage: sft, merge: true}\n    adapter: {method: lora, r: 9}"
    text = GOOD.replace("start_from: sft", merged)
    prefix = text.replace("{method: lora, r: 16, lora_alpha: 32}", "{method: prefix}")
    assert (
        only(faults(prefix), "E041").what
        == "the 'prefix' adapter cannot be merged (lines 10 and 23)"
    )
    in_4_bits = text.replace("load_in_4bit: false", "load_in_4bit: true")
    assert "into weights of 4 bits" in only(faults(in_4_bits), "E041").what


def test_r13_a_circle_is_spelled_out(faults) -> None:
    text = GOOD.replace(
        "    alignment: {method: sft}", "    start_from: ppo\n    alignment: {method: sft}"
    )
    fault = only(faults(text), "E031")
    assert fault.what == "the stages refer to each other: sft -> ppo -> sft"


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(1, 8))
def test_r13_any_graph_of_stages_is_answered(tmp_path_factory, data, size: int) -> None:
    targets = [
        data.draw(st.one_of(st.none(), st.integers(0, size - 1)), label=f"stage {number}")
        for number in range(size)
    ]
    text = "recipe: 1\nname: x\nmodel: {path: m}\nstages:\n"
    for number, target in enumerate(targets):
        how = "adapter: {method: lora}" if target is None else f"start_from: s{target}"
        text += f"- {{name: s{number}, {how}, alignment: {{method: sft}}, data: {{method: jsonl, path: x}}}}\n"
    path = tmp_path_factory.getbasetemp() / "graph.yaml"
    path.write_text(text)
    wrong = [
        number for number, target in enumerate(targets) if target is not None and target >= number
    ]
    if not wrong:
        load_recipe(path, FakeRegistry())
        return
    with pytest.raises(LlmftError) as caught:
        load_recipe(path, FakeRegistry())
    assert [fault.code for fault in caught.value.faults] == ["E031"] * len(wrong)
    assert [fault.place.line for fault in caught.value.faults] == [5 + number for number in wrong]


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("seed: 17", "output_dir: ../runs", "E046"), ("seed: 17", "output_dir: a/../../b", "E046"),
        ("seed: 17", 'output_dir: "a\\\\..\\\\b"', "E046"), ("seed: 17", 'output_dir: "a\\0b"', "E046"),
        ("seed: 17", "output_dir: ~/runs", "E046"), ("seed: 17", "output_dir: " + "x" * 300, "E046"),
        ("name: rlhf-trivia", "name: NUL", "E046"), ("name: reward\n", "name: com1\n", "E046"),
        ("name: rlhf-trivia", "name: a/b", "E028"), ("name: rlhf-trivia", "name: ..", "E028"),
    ],
)  # fmt: skip
def test_r15_a_run_folder_cannot_lead_elsewhere(faults, old: str, new: str, code: str) -> None:
    assert code in [fault.code for fault in faults(GOOD.replace(old, new, 1))]


def test_r15_an_absolute_output_dir_is_fine(load) -> None:
    assert (
        load(GOOD.replace("seed: 17", "output_dir: /data/runs")).recipe.output_dir == "/data/runs"
    )


def test_a_mistake_elsewhere_does_not_hide_a_contradiction(faults) -> None:
    text = PREFIX.replace(TRAIN, "      gradient_checkpointing: true\n      lerning_rate: 1")
    assert [fault.code for fault in faults(text)] == ["E041", "E020"]


def test_a_contradiction_is_not_made_up_from_what_is_wrong_anyway(faults) -> None:
    text = GOOD.replace(TRAIN, "      packing: true\n      max_length: abc")
    assert only(faults(text), "E022").place.line == 16
    text = GOOD.replace("{method: lora, r: 16, lora_alpha: 32}", "{method: lorra}")
    assert only(faults(text), "E024").place.line == 10


def test_a_plugin_that_fails_when_asked_is_named(faults, monkeypatch) -> None:
    monkeypatch.setattr(Jsonl, "row_kind", lambda self: 1 / 0)
    assert {fault.code for fault in faults(GOOD)} == {"E502"}
    monkeypatch.setattr(Lora, "load_options", lambda self: 1 / 0)
    found = faults(GOOD)
    assert all("ZeroDivisionError" in fault.what and fault.place.line for fault in found)


def test_a_plugins_own_contradiction_is_placed_and_hides_no_other(faults) -> None:
    data = "{method: jsonl, path: rows.jsonl, split: train}"
    text = GOOD.replace(
        data, "{method: jsonl, path: '-',\n      limit: 3}\n    evaluate: {limit: 0}", 1
    )
    found = faults(text.replace("    evaluate: {metrics: [exact_match, f1], limit: 500}\n", ""))
    assert [(fault.code, fault.place.line) for fault in found] == [("E040", 12), ("E023", 14)]
    assert found[0].what == "path '-' has no limit (lines 12 and 13)"
    assert found[0].fix == "drop limit"


def test_a_validator_that_crashes_is_put_to_its_plugin(faults) -> None:
    fault = only(faults(GOOD.replace("path: rows.jsonl", "path: crash")), "E502")
    assert "KeyError" in fault.what
    assert fault.place.line == 12


def test_a_setting_of_4_bits_without_them_is_refused(tmp_path):
    from llmft.registry.registry import Registry

    text = (
        "recipe: 1\nname: x\nmodel: {path: gpt2, quantization: {QUANT}}\nstages:\n  - name: sft\n"
        "    adapter: {method: lora}\n    alignment: {method: sft}\n    data: {method: triviaqa}\n"
    )
    path = tmp_path / "recipe.yaml"
    for more in ("", "load_in_8bit: true, "):
        path.write_text(text.replace("QUANT", f"{more}bnb_4bit_quant_type: fp4"))
        with pytest.raises(RecipeError, match="has an effect only with 4-bit weights"):
            load_recipe(path, Registry.discover())
    path.write_text(text.replace("QUANT", "load_in_8bit: true, bnb_4bit_quant_type: nf4"))
    assert load_recipe(path, Registry.discover()).recipe.model.quantization.bits == 8


def test_a_qlora_stage_and_the_models_quantization_must_agree(tmp_path):
    from llmft.registry.registry import Registry

    text = (
        "recipe: 1\nname: x\nmodel: {path: gpt2, quantization: {QUANT}}\nstages:\n  - name: sft\n"
        "    adapter: {method: qlora}\n    alignment: {method: sft}\n    data: {method: triviaqa}\n"
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("QUANT", "load_in_4bit: true, bnb_4bit_use_double_quant: true"))
    assert load_recipe(path, Registry.discover()).recipe.model.quantization.bits == 4
    path.write_text(text.replace("QUANT", "load_in_4bit: true"))
    with pytest.raises(RecipeError, match="with bnb_4bit_use_double_quant: True"):
        load_recipe(path, Registry.discover())
    path.write_text(text.replace("QUANT", "load_in_8bit: true"))
    with pytest.raises(RecipeError, match="with load_in_4bit: True"):
        load_recipe(path, Registry.discover())
