"""ms-swift's commands: its registry's rows, templates, defaults and launchers."""

from __future__ import annotations

import json

import pytest
from jinja2 import Environment
from llmft_datasets.instruction import Instruction
from llmft_datasets.preference import Preference

from llmft.cli.commands.import_ import import_any
from llmft.cli.commands.import_peer import Choices
from llmft.data.stage_rows import stage_rows
from llmft.importing.tables import known_templates, registered_rows, template_of

SWIFT = (
    "NPROC_PER_NODE=2 swift sft --model Qwen/Qwen2.5-7B-Instruct --tuner_type lora"
    " --dataset a.jsonl"
    " --system Hello --torch_dtype bfloat16 --num_train_epochs 1 --gradient_accumulation_steps 8"
    " --split_dataset_ratio 0.01 --max_length 2048 --warmup_ratio 0.05 --output_dir out"
)
OWN = "--dataset swift/self-cognition#40 --model_name Robo --model_author Ada"


def test_the_embedding_and_the_output_layer_stand_beside_every_linear_one(recipe_of):
    both = " --target_modules all-linear embed_tokens lm_head"
    adapter = recipe_of(SWIFT + both)[1].adapter
    assert adapter.target_modules == ["all-linear", "embed_tokens", "lm_head"]


def grades(command, grade):
    found = import_any(command, Choices())
    return {one.missing: one.why for one in found.findings if one.grade == grade}


def test_a_command_becomes_the_recipe_that_trains_the_same(recipe_of):
    found = import_any(SWIFT, Choices())
    assert (found.peer, found.verdict) == ("ms-swift", "same but for speed or logging")
    recipe, stage = recipe_of(SWIFT)
    train, adapter = stage.train, stage.adapter
    assert (train.learning_rate, train.adam_beta2, train.weight_decay) == (1e-4, 0.95, 0.1)
    assert (train.gradient_accumulation_steps, train.lr_scheduler_type) == (16, "cosine")
    assert (train.on_long_row, train.max_length, train.max_dropped) == ("drop", 2048, 1.0)
    assert (adapter.r, adapter.lora_alpha, adapter.target_modules) == (8, 32, "all-linear")
    assert (stage.data.method, stage.data.learn, stage.data.path) == ("chat", "all", "a.jsonl")
    assert (stage.data.system, recipe.model.stop) == ("Hello", ["<|im_end|>"])
    # scored when it is saved, as eval_strategy is save_strategy there
    assert (stage.evaluate.holdout, stage.evaluate.eval_strategy) == (0.01, "steps")


def test_rows_of_the_registry_are_the_rows_that_its_code_makes(recipe_of, tmp_path):
    _, stage = recipe_of(SWIFT.replace("--dataset a.jsonl", OWN))
    data = stage.data
    assert (data.path, data.num_samples) == ("modelscope/self-cognition", 40)
    rows = [
        {"query": "你是{{NAME}}吗?", "response": "是", "tag": "zh"},
        {"query": "Who made you?", "response": "{{AUTHOR}}, not {{NAME}}", "tag": "en"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    local = data.model_copy(update={"path": str(path)})
    asked = stage.model_copy(update={"data": local, "evaluate": None})
    found, _ = stage_rows(asked, Instruction(local), 1)
    said = {tuple((m["role"], m["content"]) for m in row.messages) for row in found.rows}
    assert said == {
        (("system", "Hello"), ("user", "你是Robo吗?"), ("assistant", "是")),
        (("system", "Hello"), ("user", "Who made you?"), ("assistant", "Ada, not Robo")),
    }
    assert len(found.rows) == 40


def test_several_data_sets_are_sources_with_their_own_numbers(recipe_of):
    names = "AI-ModelScope/alpaca-gpt4-data-zh#500 hf::vicgalle/alpaca-gpt4 b.jsonl#9"
    _, stage = recipe_of(SWIFT.replace("a.jsonl", names))
    sources = stage.data.sources
    assert [(one.method, one.path, one.num_samples) for one in sources] == [
        ("instruction", "llm-wizard/alpaca-gpt4-data-zh", 500),
        ("instruction", "vicgalle/alpaca-gpt4", None), ("chat", "b.jsonl", 9),
    ]  # fmt: skip
    assert [one.at for one in sources[0].replace] == ["start"]
    assert {one.system for one in sources} == {"Hello"}


@pytest.mark.parametrize(("flags", "missing"), [
    ("--dataset swift/ToolBench", "rows of ms-swift's registry"),
    ("--dataset swift/self-cognition:nope", "rows of ms-swift's registry"),
    ("--dataset swift/self-cognition --model_name 小黄 Huang", "names by the language of a row"),
    ("--dataset a.jsonl --quant_method hqq --quant_bits 4", "a base stored by HQQ"),
    ("--dataset a.jsonl --target_modules all-linear all-norm", "all-linear beside other modules"),
])  # fmt: skip
def test_what_a_recipe_cannot_say_stops_the_import(flags, missing):
    assert missing in grades(SWIFT.replace("--dataset a.jsonl", flags), "cannot")


@pytest.mark.parametrize(("old", "new", "missing"), [
    ("Qwen/Qwen2.5-7B-Instruct", "mine/model", "ms-swift's own template"),
    ("--system Hello", "--template phi3", "ms-swift's own template"),
    ("--system Hello", "--system prompt.txt", "system in a file"),
    ("--max_length 2048", "--max_length 2048 --lazy_tokenize true", "lazy_tokenize"),
    ("Qwen2.5-7B-Instruct --tuner_type lora", "Qwen2.5-7B --tuner_type lora", ""),
])  # fmt: skip
def test_what_the_command_leaves_open_needs_a_decision(old, new, missing):
    asked = grades(SWIFT.replace(old, new), "decide")
    assert set(asked) == ({missing} if missing else set())


def test_what_is_not_stated_is_the_models_own_where_it_is_known(recipe_of):
    bare = SWIFT.replace(" --torch_dtype bfloat16", "").replace(" --max_length 2048", "")
    recipe, stage = recipe_of(bare)
    assert (recipe.model.dtype, stage.train.bf16, stage.train.max_length) == (
        "bfloat16", True, 32768,
    )  # fmt: skip
    assert set(grades(bare.replace("7B-Instruct", "7B"), "decide")) == {
        "dtype auto", "max_length not stated",
    }  # fmt: skip


def test_a_step_has_sixteen_rows_of_all_processes_where_nothing_is_stated(recipe_of):
    bare = SWIFT.replace(" --gradient_accumulation_steps 8", "")
    for batch, count in ((1, 16), (3, 6), (64, 2)):  # ceil(16 / batch / 2) in each of 2 processes
        flags = f"{bare} --per_device_train_batch_size {batch}"
        assert recipe_of(flags)[1].train.gradient_accumulation_steps == count


@pytest.mark.parametrize(("start", "count"), [
    ("NNODES=2 NPROC_PER_NODE=4 swift sft", 64),
    ("export NPROC_PER_NODE=4\nexport NNODES=2\nswift sft", 64),
    ("NPROC_PER_NODE=4\nswift sft", 8),  # a variable of the shell alone
    ("torchrun --nproc_per_node=4 --nnodes=2 swift/cli/sft.py", 64),
])  # fmt: skip
def test_processes_of_all_machines_are_counted(recipe_of, start, count):
    command = SWIFT.replace("NPROC_PER_NODE=2 swift sft", start)
    assert recipe_of(command)[1].train.gradient_accumulation_steps == count


def test_a_base_in_4_bits_is_qlora(recipe_of):
    recipe, stage = recipe_of(f"{SWIFT} --quant_method bnb --quant_bits 4")
    adapter = stage.adapter
    assert (adapter.method, adapter.bnb_4bit_quant_type) == ("qlora", "nf4")
    assert (adapter.bnb_4bit_use_double_quant, adapter.bnb_4bit_compute_dtype) == (True, "bfloat16")
    assert not adapter.pure_bf16
    recipe, stage = recipe_of(f"{SWIFT} --quant_method bnb --quant_bits 8")
    assert (stage.adapter.method, recipe.model.quantization.load_in_8bit) == ("lora", True)


def test_dynamic_fine_tuning_is_the_loss(recipe_of):
    assert recipe_of(f"{SWIFT} --enable_dft_loss true")[1].alignment.loss_type == "dft"


@pytest.mark.parametrize(("model", "name", "system"), [
    ("Qwen/Qwen2.5-7B", "qwen2_5",
     "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    ("Qwen/Qwen2-7B-Instruct", "qwen", "You are a helpful assistant."),
    ("Qwen/Qwen2.5-Math-1.5B", "qwen2_5_math",
     "Please reason step by step, and put your final answer within \\boxed{}."),
    ("Qwen/Qwen3-4B-Instruct-2507", "qwen3_nothinking", None),
])  # fmt: skip
def test_its_templates_write_its_slots(model, name, system):
    assert template_of("ms-swift", model) == name
    known = known_templates("ms-swift")[name]
    template = Environment().from_string(known.text)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}] * 2
    said = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n" * 2
    opening = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    assert template.render(messages=turns) == opening + said
    own = [{"role": "system", "content": "S"}, *turns]
    assert template.render(messages=own) == f"<|im_start|>system\nS<|im_end|>\n{said}"
    empty = [{"role": "system", "content": ""}, *turns]
    assert template.render(messages=empty) == said
    assert (known.end, known.learn_end) == ("<|im_end|>", "turn")


def test_a_thinking_model_has_no_template_here():
    for model in ("Qwen/Qwen3-8B", "Qwen/Qwen3-4B-Thinking-2507", "mine/model"):
        assert template_of("ms-swift", model) == ""


def test_every_data_set_of_the_table_says_what_its_rows_are():
    for name, facts in registered_rows("ms-swift").items():
        assert facts["form"] in ("chat", "instruction", "preference"), name
        assert set(facts) <= {
            "hub", "form", "columns", "split", "replace", "placeholders", "subsets", "answers",
        }, name  # fmt: skip


PAIRS = SWIFT.replace(" --system Hello", "").replace(
    "a.jsonl", "hjh0119/shareAI-Llama3-DPO-zh-en-emoji"
)


def test_pairs_of_the_registry_keep_their_spaces(recipe_of, tmp_path):
    command = PAIRS.replace("swift sft", "swift rlhf --rlhf_type dpo --rpo_alpha 0.1")
    _, stage = recipe_of(command)
    alignment = stage.alignment
    assert (alignment.loss_type, alignment.loss_weights, alignment.beta) == (
        ["sigmoid", "sft"], [1.0, 0.1], 0.1,
    )  # fmt: skip
    assert stage.train.on_long_row == "drop"
    row = {"question": "Q\ufe0f ", "answer_zh": "A\ufe0f ", "answer_en": " B"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", "utf-8")
    local = stage.data.model_copy(update={"path": str(path)})
    asked = stage.model_copy(update={"data": local, "evaluate": None})
    (found,) = stage_rows(asked, Preference(local), 1)[0].rows
    assert found.prompt == ({"role": "user", "content": "Q "},)
    assert (found.chosen, found.rejected) == ("A ", " B")
    orpo = recipe_of(command.replace("dpo --rpo_alpha 0.1", "orpo"))[1].alignment
    assert (orpo.method, orpo.beta, orpo.learn_prompt) == ("orpo", 0.1, False)
    for wrong in (command.replace("hjh0119/shareAI-Llama3-DPO-zh-en-emoji", "swift/no_robots"),
                  SWIFT.replace("a.jsonl", "hjh0119/shareAI-Llama3-DPO-zh-en-emoji")):  # fmt: skip
        assert "rows of another form" in grades(wrong, "cannot")
    spoken = command.replace("--torch_dtype", "--system Hi --torch_dtype")
    assert "system of pairs" in grades(spoken, "cannot")


@pytest.mark.parametrize("kind", ["gkd", "ppo", "rm"])
def test_other_trainers_are_named(kind):
    command = SWIFT.replace("swift sft", f"swift rlhf --rlhf_type {kind}")
    assert f"trainer {kind}" in grades(command, "cannot")


def test_training_goes_on_with_an_adapter(recipe_of):
    assert recipe_of(f"{SWIFT} --adapters out/first")[1].start_from == "peft:out/first"
    pairs = SWIFT.replace("swift sft", "swift rlhf --rlhf_type dpo")
    missing = "training goes on with an adapter of another tool"
    assert missing in grades(f"{pairs} --adapters out/first", "cannot")


def test_columns_have_the_names_that_the_command_gives_them(recipe_of):
    asked = f"""{SWIFT} --columns '{{"ask": "query", "say": "response"}}'"""
    data = recipe_of(asked)[1].data
    assert (data.method, data.columns.instruction, data.columns.output) == (
        "instruction", "ask", "say",
    )  # fmt: skip
    talks = recipe_of(f"""{SWIFT} --columns '{{"talk": "messages"}}'""")[1].data
    assert (talks.method, talks.messages_column) == ("chat", "talk")
    for other in ('{"x": "history"}', '{"x": "query"}', "no json"):
        assert "names of columns" in grades(f"{SWIFT} --columns '{other}'", "cannot")
