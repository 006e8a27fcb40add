"""Configurations of other tools: each key in the recipe, told, or the reason that there is none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from llmft_datasets.instruction import Instruction
from llmft_datasets.jsonl import Jsonl
from ruamel.yaml import YAML

from llmft.api.errors import RecipeError
from llmft.cli.commands import import_check
from llmft.cli.commands.import_ import import_any
from llmft.cli.commands.import_peer import Choices, written
from llmft.cli.main import main
from llmft.data.conversation import ROLES
from llmft.importing.structure.axolotl import data as axolotl_data
from llmft.importing.tables import known_templates
from llmft.recipes.load import load_recipe

AXOLOTL = """\
base_model: NousResearch/Llama-3.2-1B-Instruct
load_in_4bit: true
adapter: qlora
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
datasets:
  - path: mlabonne/FineTome-100k
    type: chat_template
    split: train[:500]
    field_messages: conversations
    message_property_mappings:
      role: from
      content: value
val_set_size: 0.05
sequence_len: 2048
sample_packing: true
attn_implementation: flash_attention_2
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 3
optimizer: paged_adamw_8bit
lr_scheduler: cosine
learning_rate: 2e-4
warmup_steps: 10
weight_decay: 0.1
bf16: auto
gradient_checkpointing: true
logging_steps: 1
saves_per_epoch: 1
output_dir: ./outputs/out
"""
TRL = """\
model_name_or_path: Qwen/Qwen2-0.5B-Instruct
dataset_name: trl-lib/ultrafeedback_binarized
use_peft: true
output_dir: out
"""
LLAMA = """\
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
stage: sft
finetuning_type: lora
dataset: mine
template: llama3
bf16: true
learning_rate: 1.0e-4
cutoff_len: 1024
output_dir: out
"""
CAPYBARA = (
    "python trl/scripts/sft.py --model_name_or_path Qwen/Qwen2-0.5B"
    " --dataset_name trl-lib/Capybara --use_peft --lora_r 32 --lora_alpha 16 --output_dir out"
)


def grades(found, grade):
    return {finding.key: finding.why for finding in found.findings if finding.grade == grade}


def test_an_axolotl_file_becomes_the_recipe_that_trains_the_same(stage_of, imported):
    recipe, stage = stage_of(AXOLOTL)
    adapter, train, data = stage.adapter, stage.train, stage.data
    assert (recipe.model.path, recipe.model.dtype, recipe.seed) == (
        "NousResearch/Llama-3.2-1B-Instruct", "bfloat16", 42,
    )  # fmt: skip
    assert (adapter.method, adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (
        "qlora", 32, 16, 0.05,
    )  # fmt: skip
    assert (adapter.target_modules, adapter.bnb_4bit_use_double_quant) == ("all-linear", True)
    assert (data.method, data.path, data.split, data.limit, data.messages_column, data.learn) == (
        "chat", "mlabonne/FineTome-100k", "train", 500, "conversations", "all",
    )  # fmt: skip
    assert (train.max_length, train.packing, train.on_long_row, train.max_dropped) == (
        2048, True, "drop", 1.0,
    )  # fmt: skip
    assert (train.per_device_train_batch_size, train.gradient_accumulation_steps) == (2, 4)
    assert "takes the mean of its passes' means" in " ".join(
        imported(AXOLOTL).text.replace("#", "").split()
    )
    assert (train.num_train_epochs, train.optim, train.lr_scheduler_type) == (
        3.0, "paged_adamw_8bit", "cosine",
    )  # fmt: skip
    assert (train.learning_rate, train.warmup_steps, train.weight_decay) == (2e-4, 10, 0.1)
    assert (train.bf16, train.gradient_checkpointing, train.save_strategy) == (
        "auto", True, "epoch",
    )  # fmt: skip
    assert "Axolotl takes float16" in " ".join(imported(AXOLOTL).text.replace("#", "").split())
    assert stage.evaluate.holdout == 0.05
    assert imported(AXOLOTL).verdict == "same but for speed or logging"


@pytest.mark.parametrize(
    ("said", "here"), [("true", True), ("false", False), ("auto", True), ("", None)]
)
def test_axolotls_tf32_is_carried_over(stage_of, imported, said, here):
    """On a machine without a GPU too: that one is needed is told where the run begins."""
    text = f"{AXOLOTL}tf32: {said}\n"
    assert stage_of(text)[1].train.tf32 is here
    assert "tf32" not in grades(imported(text), "speed")


@pytest.mark.parametrize(("said", "here"), [("true", True), ("legacy", True), ("disk", False)])
def test_axolotls_offloading_is_carried_over(stage_of, imported, said, here):
    text = f"{AXOLOTL}activation_offloading: {said}\n"
    assert stage_of(text)[1].train.activation_offloading is here
    assert ("activation_offloading" in grades(imported(text), "speed")) is not here


def test_trls_offloading_is_carried_over_with_checkpointing(stage_of, imported):
    """TRL moves all activations where none is computed again, which is not here."""
    text = f"{TRL}activation_offloading: true\n"
    assert stage_of(text, trainer="dpo")[1].train.activation_offloading
    text += "gradient_checkpointing: false\n"
    assert not stage_of(text, trainer="dpo")[1].train.activation_offloading
    assert "activation_offloading" in grades(imported(text, trainer="dpo"), "speed")


def test_transformers_tf32_is_carried_over(stage_of):
    assert stage_of(f"{TRL}tf32: true\n", trainer="dpo")[1].train.tf32 is True


def test_axolotls_watch_over_the_loss_and_its_rope_scaling(stage_of, imported):
    text = f"{AXOLOTL}loss_watchdog_threshold: 5.0\nloss_watchdog_patience: 2\n"
    text += "overrides_of_model_config:\n  rope_scaling: {type: linear, factor: 4.0}\n"
    recipe, stage = stage_of(text)
    (watch,) = stage.plugins
    assert (watch.method, watch.threshold, watch.patience, watch.on_spike) == (
        "loss_watchdog", 5.0, 2, "end",
    )  # fmt: skip
    rope = recipe.model.rope_scaling
    assert (rope.rope_type, rope.factor) == ("linear", 4.0)
    assert imported(text).verdict == imported(AXOLOTL).verdict
    assert imported(text.replace("linear", "dynamic")).verdict == "cannot yet"
    assert imported(text.replace("factor:", "odd: 1, factor:")).verdict == "cannot yet"


def test_trl_gets_its_own_defaults_and_not_ours(stage_of):
    recipe, stage = stage_of(TRL, trainer="dpo")
    adapter, train = stage.adapter, stage.train
    assert (train.learning_rate, train.num_train_epochs, train.max_length) == (1e-6, 3.0, 1024)
    assert (train.bf16, train.gradient_checkpointing, train.logging_steps) == (True, True, 10)
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (16, 32, 0.05)
    assert adapter.target_modules == ["q_proj", "v_proj"]  # PEFT's choice for qwen2
    assert (stage.alignment.beta, recipe.model.dtype, recipe.seed) == (0.1, "float32", 42)
    assert train.on_long_row == "fail"  # TRL cuts a long pair otherwise


TEXTS = """\
model_name_or_path: Qwen/Qwen2-0.5B
dataset_name: roneneldan/TinyStories
learning_rate: 1e-4
max_length: 256
output_dir: out
packing: true
"""


@pytest.mark.parametrize(("strategy", "said"), [
    ("wrapped", ("wrapped", "split", True)), ("bfd_split", ("bfd", "split", False)),
    ("bfd", ("bfd", "truncate", False)),
])  # fmt: skip
def test_trls_ways_to_pack_texts(strategy, said, stage_of, imported):
    text = f"{TEXTS}packing_strategy: {strategy}\n"
    _, stage = stage_of(text, trainer="sft")
    train = stage.train
    assert train.packing
    assert (train.packing_strategy, train.on_long_row, train.cross_document_attention) == said
    apart = "packing" in grades(imported(text, trainer="sft"), "decide")
    assert apart == (strategy != "wrapped")  # without FlashAttention its rows see each other
    talks = text.replace("roneneldan/TinyStories", "trl-lib/Capybara")
    cut = "packing_strategy" in grades(imported(talks, trainer="sft"), "cannot")
    assert cut == (strategy != "bfd")


@pytest.mark.parametrize(
    ("trainer", "rows", "learnt"),
    [
        ("dpo", "preference", "turn"), ("kto", "unpaired", "turn"),
        ("reward", "preference", "turn"),
        ("sft", "prompt-completion", "turn"), ("sft", "chat", "stop"), ("sft", "text", "stop"),
    ],
)  # fmt: skip
def test_trl_learns_what_a_template_writes_after_an_answer(stage_of, trainer, rows, learnt):
    # TRL 1.16: completion_ids = prompt_completion_ids[prompt_len:], the line break after it too.
    recipe, _ = stage_of(TRL, trainer=trainer, rows=rows)
    assert recipe.model.learn_template == learnt


@pytest.mark.parametrize(
    ("peer", "trainer", "appended", "apart"),
    [
        ("trl", "dpo", False, False), ("trl", "orpo", "once", False), ("trl", "cpo", "once", False),
        ("alignment-handbook", "dpo", "always", True),
        ("alignment-handbook", "orpo", "once", False),
    ],
)  # fmt: skip
def test_end_of_text_after_the_templates_own_is_put_as_the_trainer_does(
    stage_of, peer, trainer, appended, apart
):
    # TRL 1.16: add_eos_token_if_needed of ORPO and CPO; TRL 0.19: DPOTrainer.tokenize_row.
    text = TRL + "bf16: true\n"
    recipe, _ = stage_of(text, peer=peer, trainer=trainer, rows="preference")
    assert recipe.model.append_eos == appended
    assert recipe.model.tokenize_apart == apart


@pytest.mark.parametrize(("model", "asks"), [("Qwen/Qwen2-0.5B-Instruct", False), ("gpt2", True)])
def test_beginning_of_text_that_orpo_puts_before_a_template_awaits_a_decision(
    imported, model, asks
):
    # TRL 1.16: add_bos_token_if_needed; Qwen2's tokenizer has no such token.
    text = re.sub("model_name_or_path: .*", f"model_name_or_path: {model}", TRL)
    found = imported(text + "bf16: true\n", trainer="orpo", rows="preference")
    reasons = {finding.missing for finding in found.findings if finding.grade == "decide"}
    assert ("beginning-of-text before the template's own" in reasons) == asks


def test_trls_capybara_command_is_not_taken_for_another_one(registry_of_methods):
    found = import_any(CAPYBARA, Choices())
    assert "\nname: lora_sft_trl\n" in found.text
    assert found.peer == "trl"
    if not found.text:  # every token is learnt there, which a recipe may not say yet
        assert "data.learn" in {finding.missing.partition(":")[0] for finding in found.findings}
    else:
        assert "learn: every_token" in found.text
        assert "learning_rate: 2e-05" in found.text


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("lerning_rate: 1e-3", "lerning_rate"),
        ("my_plugin_setting: 3", "my_plugin_setting"),
        ("datasets2: []", "datasets2"),
    ],
)
def test_an_unknown_key_is_never_passed_over(imported, line, key):
    found = imported(AXOLOTL + line + "\n")
    assert found.verdict == "needs your decision"
    assert key in grades(found, "decide")
    with pytest.raises(RecipeError) as caught:
        written(found, anyway=False)
    assert caught.value.faults[0].code == "E092"
    assert caught.value.faults[0].place.line == len(AXOLOTL.splitlines()) + 1
    assert "DECIDE" in written(found, anyway=True)


def test_a_near_miss_is_told():
    found = import_any_text(AXOLOTL + "lora_rr: 3\n")
    assert "did you mean 'lora_r'" in grades(found, "decide")["lora_rr"]


def import_any_text(text, name="config.yaml", **choices):
    from llmft.cli.commands.import_peer import import_yaml
    from llmft.registry.registry import Registry

    return import_yaml(text, name, Choices(**choices), Registry.discover())


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("relora: true", "ReLoRA"),
        ("fp16: true", "float16"),
        ("gptq: true", "a base stored by GPTQ"),
        ("pretraining_dataset: [{path: allenai/c4}]", "continued pretraining on a stream"),
    ],
)
def test_what_a_recipe_cannot_say_stops_the_import(imported, line, missing):
    found = imported(AXOLOTL + line + "\n")
    assert found.verdict == "cannot yet"
    assert not found.text
    assert missing in {finding.missing for finding in found.findings if finding.grade == "cannot"}
    with pytest.raises(RecipeError) as caught:
        written(found, anyway=True)
    assert "E093" in {fault.code for fault in caught.value.faults}


@pytest.mark.parametrize("line", ["relora: false", "gptq: null", "fp16:", "fsdp: []", "deepspeed:"])
def test_what_is_switched_off_changes_nothing(imported, line):
    before, found = imported(AXOLOTL), imported(AXOLOTL + line + "\n")
    assert found.verdict == before.verdict
    assert found.text == before.text


def test_packed_rows_that_see_each_other_need_a_decision(imported):
    found = imported(AXOLOTL.replace("flash_attention_2", "sdpa"))
    assert "see each other" in grades(found, "decide")["sample_packing"]


def test_a_template_of_axolotls_own_needs_a_decision(imported, stage_of):
    own = imported(AXOLOTL + "chat_template: jamba\n")
    assert "chat_template" in grades(own, "decide")
    given = "chat_template: jinja\nchat_template_jinja: \"{{ messages[0]['content'] }}\"\n"
    recipe, _ = stage_of(AXOLOTL + given)
    assert recipe.model.chat_template == "{{ messages[0]['content'] }}"


def test_several_processes_take_their_rows_in_one(stage_of, imported):
    _, stage = stage_of(AXOLOTL, processes=4)
    assert stage.train.gradient_accumulation_steps == 16
    assert "started with 4 processes" in imported(AXOLOTL, processes=4).text


def test_the_launcher_says_how_many_processes(monkeypatch):
    command = f"accelerate launch --num_processes 2 {CAPYBARA.removeprefix('python ')}"
    command = command.replace("sft.py", "dpo.py").replace("Capybara", "ultrafeedback_binarized")
    found = import_any(command, Choices())
    assert "gradient_accumulation_steps: 2" in found.text
    shell = "NPROC_PER_NODE=8 " + CAPYBARA.replace("sft.py", "dpo.py").replace(
        "Capybara", "ultrafeedback_binarized"
    )
    assert "gradient_accumulation_steps: 8" in import_any(shell, Choices()).text


@pytest.mark.parametrize("value", ["${MY_MODEL}", "${oc.env:MY_MODEL}", "$MY_MODEL", "{{ model }}"])
def test_an_environment_variable_is_named_and_never_expanded(imported, monkeypatch, value):
    monkeypatch.setenv("MY_MODEL", "canary/model")
    text = AXOLOTL.replace("./outputs/out", f'"{value}"')
    found = imported(text)
    assert found.verdict == "needs your decision"
    assert value.strip("${} ")[:5] in grades(found, "decide")["output_dir"]
    assert "canary" not in found.text + str(found.findings)


def test_words_of_yaml_1_1_mean_what_the_peer_reads(stage_of, imported):
    text = TRL.replace("use_peft: true", "use_peft: yes\nbf16: no\ngradient_checkpointing: off")
    _, stage = stage_of(text, trainer="dpo")
    assert (stage.train.bf16, stage.train.gradient_checkpointing) == (False, False)
    for number in ("seed: 0100", "seed: 1_000", "max_steps: 1:30"):
        found = imported(AXOLOTL + number + "\n")
        assert "YAML 1.1" in grades(found, "decide")[number.split(":")[0]]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
            f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 10)}]\n"
            for n in range(6)), "E002"),
        ("a: " + "[" * 200 + "]" * 200, "E002"),
        ("base_model: !include other.yaml\n", "E009"),
        (AXOLOTL + "---\n" + AXOLOTL, "E010"),
        ("base: &b {r: 8}\nadapter:\n  <<: *b\n", "E008"),
        (AXOLOTL + "seed: 1\nseed: 2\n", "E006"),
        (AXOLOTL + 'run_name: "a\\ud800"\n', "E022"),
        (AXOLOTL + '"a\\ud800": 1\n', "E022"),
    ],
)  # fmt: skip
def test_hostile_and_broken_files_are_named_before_anything_is_read(imported, text, code):
    with pytest.raises(RecipeError) as caught:
        imported(text)
    assert code in {fault.code for fault in caught.value.faults}


def test_a_secret_is_not_repeated(imported):
    token = "hf_" + "a1B2c3D4e5F6g7H8i9J0" + "kLmNoPqRsTuVwX"
    found = imported(AXOLOTL + f"hub_token_of_mine: {token}\n")
    with pytest.raises(RecipeError) as caught:
        written(found, anyway=False)
    faults = caught.value.faults
    shown = str(found.findings) + "".join(
        f.line() + (f.place.source if f.place else "") for f in faults
    )
    assert token not in shown
    assert token not in found.text


def test_llamafactorys_own_data_sets_are_known_by_name(imported, stage_of, tmp_path):
    # LLaMA-Factory 0.9.6: data/dataset_info.json, AlpacaDatasetConverter, qwen3_nothink's slots.
    text = LLAMA.replace("dataset: mine", "dataset: identity, alpaca_en\nmax_samples: 7")
    text = text.replace("template: llama3", "template: qwen3_nothink")
    recipe, stage = stage_of(text, str(tmp_path / "x.yaml"))
    assert [(one.method, one.path, one.limit, one.with_input) for one in stage.data.sources] == [
        ("instruction", path, 7, "{instruction}\n{input}")
        for path in ("data/identity.json", "llamafactory/alpaca_en")
    ]
    assert (recipe.model.learn_template, recipe.model.stop) == ("turn", ["<|im_end|>"])
    (tmp_path / "dataset_info.json").write_text('{"identity": {"hf_hub_url": "me/mine"}}')
    _, stage = stage_of(text.replace(", alpaca_en", ""), str(tmp_path / "x.yaml"))
    assert stage.data.path == "me/mine"
    remote = imported(f"{text}dataset_dir: REMOTE:a/b\n", "x.yaml")
    assert "dataset_info.json" in grades(remote, "decide")["dataset"]


def test_llamafactorys_qwen_templates_write_its_slots():
    from jinja2 import Environment

    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    said = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    opening = (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    )
    for name, expected in (("qwen3_nothink", said), ("qwen", f"{opening}<|im_end|>\n{said}")):
        template = Environment().from_string(known_templates("llamafactory")[name].text)
        assert template.render(messages=turns) == expected


@pytest.fixture
def described(stage_of, imported, tmp_path):
    """Import a LLaMA-Factory file whose data set has this description: (its data, findings)."""

    def run(description, lines="stage: sft"):
        (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": description}))
        text = LLAMA.replace("stage: sft", lines)
        found = imported(text, str(tmp_path / "x.yaml"))
        return stage_of(text, str(tmp_path / "x.yaml"))[1].data if found.text else None, found

    return run


@pytest.mark.parametrize(
    ("columns", "given", "asked"),
    [
        (None, {"instruction": "Why?", "input": "Now.", "output": "So."}, "Why?\nNow."),
        ({"prompt": "input", "response": "target"}, {"input": "Why?", "target": "So."}, "Why?"),
    ],
    ids=["usual", "named"],
)
def test_of_llamafactorys_named_columns_one_left_out_is_none(described, columns, given, asked):
    # LLaMA-Factory 0.9.5: data/parser.py, DatasetAttr.join.
    data, _ = described({"file_name": "x.json"} | ({"columns": columns} if columns else {}))
    row = Instruction(data).row(given, "x")
    assert [message["content"] for message in row.messages] == [asked, "So."]


@pytest.mark.parametrize(
    ("description", "lines", "given", "expected"),
    [
        (
            {"ranking": True, "columns": {"prompt": "q", "chosen": "c", "rejected": "r"}},
            "stage: dpo", {"q": "Why?", "c": " So. ", "r": "No."}, ("Why?", " So. ", "No."),
        ),
        (
            {"ranking": True, "formatting": "sharegpt",
             "columns": {"messages": "conversations", "chosen": "c", "rejected": "r"}},
            "stage: dpo\npref_loss: orpo",
            {"conversations": [{"from": "human", "value": "Why?"}],
             "c": {"from": "gpt", "value": "So. "}, "r": {"from": "gpt", "value": "No."}},
            ("Why?", "So. ", "No."),
        ),
        (
            {"columns": {"prompt": "q", "response": "a", "kto_tag": "good"}},
            "stage: kto", {"q": "Why?", "a": " So.", "good": False}, ("Why?", " So.", False),
        ),
    ],
    ids=["pairs", "pairs of talks", "labels"],
)  # fmt: skip
def test_llamafactorys_judged_answers_keep_their_spaces(
    described, registry_of_methods, description, lines, given, expected
):
    data, _ = described({"file_name": "x.json", **description}, lines)
    row = registry_of_methods.method("dataset", data.method)(data).row(given, "x")
    answers = (row.completion, row.label) if hasattr(row, "label") else (row.chosen, row.rejected)
    assert (row.prompt[-1]["content"], *answers) == expected


def test_llamafactorys_pairs_with_an_input_are_not_imported(described):
    # data/converter.py joins a prompt and an input only where there is one.
    data, found = described({"file_name": "x.json", "ranking": True}, "stage: dpo")
    assert data is None
    assert any("query" in finding.why for finding in found.findings)


def test_llamafactory_reads_its_data_sets_from_dataset_info(imported, stage_of, tmp_path):
    config = tmp_path / "train.yaml"
    config.write_text(LLAMA)
    missing = imported(LLAMA, str(config))
    assert "dataset_info.json" in grades(missing, "decide")["dataset"]
    (tmp_path / "data").mkdir()
    described = {"mine": {"file_name": "mine.json", "formatting": "sharegpt"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(described))
    recipe, stage = stage_of(LLAMA, str(config))
    assert stage.data.path == str(tmp_path / "data" / "mine.json")
    assert (stage.data.messages_column, stage.data.learn) == ("conversations", "all")
    assert (stage.adapter.r, stage.adapter.lora_alpha) == (8, 16)  # alpha: twice the rank
    assert (stage.train.max_length, stage.train.on_long_row) == (1024, "fail")
    assert recipe.model.chat_template.startswith("{{ bos_token }}")
    assert imported(LLAMA, str(config)).verdict == "same"


@pytest.mark.parametrize("part", [{"columns": 5}, {"columns": ["images"]}, {"tags": "x"}])
def test_a_dataset_info_of_another_shape_awaits_a_decision(imported, tmp_path, part):
    described = {"mine": {"file_name": "x.json", "formatting": "sharegpt", **part}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(described))
    found = imported(LLAMA, str(tmp_path / "x.yaml"))
    assert "are no blocks" in grades(found, "decide")["dataset"]


def test_llamafactorys_llama3_template_writes_its_own_text(imported, tmp_path, stage_of):
    from jinja2 import Environment

    (tmp_path / "dataset_info.json").write_text(
        '{"mine": {"hf_hub_url": "a/b", "formatting": "sharegpt"}}'
    )
    recipe, _ = stage_of(LLAMA, str(tmp_path / "x.yaml"))
    rows = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"},
            {"role": "assistant", "content": "A"}]  # fmt: skip
    text = (
        Environment()
        .from_string(recipe.model.chat_template)
        .render(messages=rows, bos_token="<|begin_of_text|>", add_generation_prompt=False)
    )
    # data/template.py of LLaMA-Factory: prefix, system, user with the answer's head, assistant
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
    )


def test_the_form_of_unknown_rows_is_asked_for(imported, stage_of):
    text = TRL.replace("trl-lib/ultrafeedback_binarized", "me/mine")
    found = imported(text, trainer="dpo")
    assert "--rows preference" in grades(found, "decide")["dataset_name"]
    _, stage = stage_of(text, trainer="dpo", rows="preference")
    assert (stage.data.method, stage.data.path) == ("preference", "me/mine")
    wrong = imported(text, trainer="dpo", rows="text")
    assert wrong.verdict == "cannot yet"


def test_nobodys_file_and_a_missing_trainer_are_told(imported):
    with pytest.raises(RecipeError, match="--peer"):
        imported("hello: world\n")
    with pytest.raises(RecipeError, match="--trainer"):
        imported(TRL, "config.yaml")
    assert imported(TRL, "recipes/zephyr/dpo/config.yaml").text


def test_a_folder_is_checked_and_nothing_is_written(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(AXOLOTL)
    (tmp_path / "b.yml").write_text(AXOLOTL + "relora: true\n")
    (tmp_path / "c.yaml").write_text("hello: world\n")
    (tmp_path / "d.yaml").write_text("a: [\n")
    (tmp_path / "run.sh").write_text(CAPYBARA + " --beta $BETA\n")
    before = sorted(tmp_path.rglob("*"))
    assert main(["import", "--check", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdicts"]["axolotl"] == {"same but for speed or logging": 1, "cannot yet": 1}
    assert told["verdicts"]["-"] == {
        "no configuration": 1, "cannot be read": 1, "needs your decision": 1,
    }  # fmt: skip
    assert {"what": "ReLoRA", "files": 1, "alone": 1} in told["blocking"]
    assert main(["import", "--check", str(tmp_path)]) == 0
    assert "ReLoRA" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(RecipeError):
        import_check.report(str(tmp_path / "a.yaml"), Choices())


def test_the_command_writes_reports_and_refuses(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(AXOLOTL)
    out = tmp_path / "recipe.yaml"
    assert main(["import", str(config), "--output", str(out)]) == 0
    assert "same but for speed or logging (axolotl" in capsys.readouterr().out
    assert main(["validate", str(out)]) == 0
    config.write_text(AXOLOTL + "surprise: 1\n")
    other = tmp_path / "other.yaml"
    assert main(["import", str(config), "--output", str(other)]) == 2
    assert not other.exists()
    assert "E092" in capsys.readouterr().err
    assert main(["import", str(config), "--output", str(other), "--anyway"]) == 0
    assert "DECIDE" in Path(other).read_text()
    config.write_text(AXOLOTL + "relora: true\n")
    third = tmp_path / "third.yaml"
    assert main(["import", str(config), "--output", str(third), "--anyway"]) == 2
    assert not third.exists()
    assert "E093" in capsys.readouterr().err
    assert main(["import", "--peer", "nobody", str(config)]) == 2


HANDBOOK = """\
model_name_or_path: HuggingFaceTB/SmolLM2-360M
torch_dtype: bfloat16
dataset_mixture:
  datasets:
    - id: HuggingFaceH4/ultrafeedback_binarized
      config: default
      split: train_prefs
      columns: [chosen, rejected]
      weight: 1.0
  test_split_size: 0.05
bf16: true
beta: 0.01
gradient_checkpointing: true
output_dir: out
"""
OUMI = """\
model:
  model_name: HuggingFaceTB/SmolLM2-135M-Instruct
  torch_dtype_str: bfloat16
  model_max_length: 512
data:
  train:
    datasets: [{dataset_name: text_sft_jsonl, dataset_path: rows.jsonl}]
    train_target: ALL_ASSISTANT_TURNS
training:
  trainer_type: TRL_SFT
  use_peft: true
  learning_rate: 3.0e-4
  warmup_steps: 7
  max_grad_norm: 0.0
  output_dir: "${model.model_name}"
peft: {lora_r: 16, lora_alpha: 32, lora_target_modules: [q_proj, v_proj]}
"""


def test_a_mixture_of_one_data_set_of_the_handbook_is_held_out_from(stage_of):
    recipe, stage = stage_of(HANDBOOK, "recipes/zephyr/dpo/config_full.yaml")
    assert (stage.data.path, stage.data.subset, stage.data.split) == (
        "HuggingFaceH4/ultrafeedback_binarized", "default", "train_prefs",
    )  # fmt: skip
    assert (stage.alignment.method, stage.alignment.beta, stage.train.bf16) == ("dpo", 0.01, True)
    assert (recipe.model.dtype, stage.adapter.method) == ("bfloat16", "full")


def test_bfloat16_weights_are_trained_themselves_where_nothing_keeps_float32_ones(stage_of):
    # A Trainer updates the parameters as they were loaded; DeepSpeed and FSDP keep float32 copies.
    name = "recipes/dpo/config.yaml"
    assert stage_of(HANDBOOK, name)[1].adapter.pure_bf16
    assert not stage_of(HANDBOOK + "deepspeed: zero3.json\n", name)[1].adapter.pure_bf16
    assert not stage_of(HANDBOOK.replace("dtype: bf", "dtype: f").replace("float16", "float32"),
                        name)[1].adapter.pure_bf16  # fmt: skip
    text = AXOLOTL.replace("adapter: qlora", "adapter:").replace("load_in_4bit: true", "")
    text = text.replace("weight_decay: 0.1", "weight_decay: 0.0")
    assert stage_of(text)[1].adapter.pure_bf16
    assert not stage_of(text + "fsdp: [full_shard]\n")[1].adapter.pure_bf16


@pytest.mark.parametrize("width", ["load_in_4bit", "load_in_8bit"])
def test_trl_trains_the_adapter_of_a_quantised_base_in_bfloat16(stage_of, width):
    # TRL 1.16, SFTTrainer, DPOTrainer, KTOTrainer: param.data.to(torch.bfloat16).
    assert stage_of(f"{TRL}{width}: true\n", trainer="dpo")[1].adapter.pure_bf16
    assert not stage_of(TRL, trainer="dpo")[1].adapter.pure_bf16


def test_llamafactorys_pure_bf16_leaves_an_adapter_in_float32(imported, tmp_path):
    # LLaMA-Factory 0.9.6, model/adapter.py: get_peft_model without autocast_adapter_dtype.
    described = {"mine": {"file_name": "mine.json", "formatting": "sharegpt"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(described))
    found = imported(LLAMA + "pure_bf16: true\n", str(tmp_path / "config.yaml"))
    assert "float32" in grades(found, "none")["pure_bf16"]
    assert "\n      pure_bf16" not in found.text


def test_oumis_exclusions_are_one_pattern(stage_of):
    # oumi 0.8, PeftParams.to_lora: "|".join(f"({m})" for m in lora_exclude_modules).
    text = OUMI.replace(
        "[q_proj, v_proj]", "[q_proj, v_proj], lora_exclude_modules: [.*vis.*, .*aud.*]"
    )
    assert stage_of(text)[1].adapter.exclude_modules == "(.*vis.*)|(.*aud.*)"


def test_an_oumi_file_of_a_quantised_base(stage_of, imported):
    text = OUMI.replace("peft: {", "peft: {q_lora: true, ")
    adapter = stage_of(text)[1].adapter
    assert (adapter.method, adapter.pure_bf16) == ("qlora", True)
    # oumi 0.8, builders/models.py: prepare_model_for_kbit_training makes the rest float32.
    assert "float32" in grades(imported(text), "speed")["peft.q_lora"]


def test_oumis_magpie_rows_are_conversations_in_their_own_column(stage_of):
    # oumi 0.8, datasets/sft/magpie.py: `conversations`, with from and value.
    name = "Magpie-Align/Llama-3-Magpie-Pro-1M-v0.1"
    rows = "{dataset_name: text_sft_jsonl, dataset_path: rows.jsonl}"
    data = stage_of(OUMI.replace(rows, f"{{dataset_name: {name}}}"))[1].data
    assert (data.method, data.path, data.messages_column) == ("chat", name, "conversations")


def test_oumis_llama_3_template_writes_what_oumi_writes(stage_of):
    # What oumi 0.8's llama3-instruct.jinja gave, read as build_chat_template reads it.
    text = OUMI.replace(
        "model_max_length: 512", "model_max_length: 512\n  chat_template: llama3-instruct"
    )
    template = stage_of(text)[0].model.chat_template
    messages = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello\n"},
    ]
    expected = (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    )
    from jinja2 import Environment

    text = Environment().from_string(template).render(messages=messages, bos_token="<s>")
    assert text == expected


def test_an_oumi_file_with_references_within_itself(stage_of, imported):
    recipe, stage = stage_of(OUMI)
    assert recipe.output_dir == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (stage.data.path, stage.data.learn) == ("rows.jsonl", "all")
    train, adapter = stage.train, stage.adapter
    assert (train.max_length, train.learning_rate, train.warmup_steps) == (512, 3e-4, 7)
    assert (train.max_grad_norm, train.bf16, train.num_train_epochs) == (0.0, False, 3)
    assert (adapter.r, adapter.lora_alpha, adapter.target_modules) == (16, 32, ["q_proj", "v_proj"])
    other = imported(OUMI.replace("text_sft_jsonl", "HuggingFaceFW/fineweb-edu"))
    assert other.verdict == "cannot yet"


def test_alpaca_rows_get_alpacas_prompts_and_answers_are_encoded_apart(stage_of, imported):
    text = AXOLOTL.replace("type: chat_template", "type: alpaca").split("    field_messages")
    text = text[0] + "val_set_size" + text[1].split("val_set_size")[1]
    _, stage = stage_of(text)
    columns = stage.data.columns
    assert (stage.data.method, stage.data.prompt_style) == ("jsonl", "alpaca")
    assert (columns.prompt, columns.input, columns.completion) == ("instruction", "input", "output")
    assert stage_of(text)[0].model.tokenize_apart
    both = text.replace("val_set_size", "  - {path: talks, type: chat_template}\nval_set_size", 1)
    assert not stage_of(both)[0].model.tokenize_apart
    spaced = both.replace("NousResearch/Llama-3.2-1B-Instruct", "NousResearch/Llama-2-7b-hf")
    assert "a space before it" in grades(imported(spaced), "decide")["datasets[0].type"]


TALK = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi\n"},
    {"role": "assistant", "content": " Hello. "}, {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "No."},
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "file", "turns"),
    [
        ("llama3", "llama3.jinja", TALK),
        ("gemma", "gemma.jinja", TALK[1:]),
        ("gemma3", "gemma3.jinja", TALK),
        ("qwen_25", "qwen2_5.jinja", TALK),
        ("qwen_25", "qwen2_5.jinja", TALK[1:]),
        ("chatml", "qwen3_instruct_2507.jinja", TALK),
        ("falcon_h1", "lfm2.jinja", TALK),
    ],
)
def test_a_template_by_name_renders_as_trls_copy_of_it(name, file, turns):
    """TRL's copies are the oracle; the texts here are written anew from the formats."""
    from pathlib import Path

    import trl
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = (Path(trl.__file__).parent / "chat_templates" / file).read_text("utf-8")
    ours = known_templates()[name].text
    for asked in (False, True):
        said = turns[: -1 if asked else None]
        rendered = [
            _compile_jinja_template(text).render(
                messages=said, add_generation_prompt=asked, bos_token="<s>", eos_token="</s>"
            )
            for text in (ours, theirs)
        ]
        assert rendered[0] == rendered[1]


def test_the_end_of_an_answer_is_learnt_where_axolotl_learns_it(imported, stage_of):
    # tests/data/test_chat_encoding.py holds `eos` against Axolotl's own rule.
    recipe, stage = stage_of(AXOLOTL.replace("NousResearch/Llama-3.2-1B-Instruct", "me/unknown"))
    assert (recipe.model.learn_template, recipe.model.stop) == ("eos", [])
    assert stage.data.turns == "whole"  # Axolotl makes one row of a conversation
    base = AXOLOTL.replace("1B-Instruct", "1B") + "chat_template: llama3\n"
    said = f"{base}special_tokens: {{eos_token: <|eot_id|>}}\n"
    assert stage_of(said)[0].model.stop == ["<|eot_id|>"]
    assert imported(said).verdict == "same but for speed or logging"
    listed = stage_of(f"{base}eot_tokens: [<|eot_id|>, <|eom_id|>]\n")[0].model
    assert (listed.learn_template, listed.stop) == ("eos", ["<|eot_id|>", "<|eom_id|>"])
    # the tokenizer's own end-of-text ends no answer any more, and here it would be learnt
    wrong = imported(f"{AXOLOTL}special_tokens: {{eos_token: <|end_of_text|>}}\n")
    assert "another end-of-text" in grades(wrong, "decide")["special_tokens.eos_token"]


def test_an_axolotl_warm_up_that_nobody_states_is_3_percent_and_at_most_100(stage_of, imported):
    # Axolotl 0.18, core/builders/base.py: min(int(0.03 * total_num_steps), 100).
    text = AXOLOTL.replace("warmup_steps: 10\n", "")
    train = stage_of(text)[1].train
    assert (train.warmup_ratio, train.warmup_max_steps, train.warmup_rounding) == (
        0.03, 100, "axolotl",
    )  # fmt: skip
    assert imported(text).verdict == "same but for speed or logging"


@pytest.mark.parametrize(("size", "held"), [("0.05", 0.05), ("100", 100)])
def test_a_share_or_a_number_of_rows_is_held_out(stage_of, size, held):
    # Axolotl 0.18, utils/data/sft.py: int(val_set_size) if it is above 1.
    text = AXOLOTL.replace("val_set_size: 0.05", f"val_set_size: {size}")
    assert stage_of(text)[1].evaluate.holdout == held
    handbook = HANDBOOK.replace("test_split_size: 0.05", f"test_split_size: {size}")
    _, stage = stage_of(handbook, "recipes/dpo/config.yaml")
    assert stage.evaluate.holdout == held


@pytest.mark.parametrize(("line", "key", "grade"), [
    ("torch_compile_mode: max-autotune", "torch_compile_mode", "none"),
    ("trackio_space_id: me/space", "trackio_space_id", "logging"),
])  # fmt: skip
def test_what_changes_no_more_than_rounding_or_logging_is_told(imported, line, key, grade):
    found = imported(f"{AXOLOTL}{line}\n")
    assert found.verdict == "same but for speed or logging"
    assert key in grades(found, grade)


@pytest.mark.parametrize("name", ["adamw_torch_8bit", "adamw_torch_4bit"])
def test_torchao_s_optimisers_are_taken_over_by_their_names(imported, name):
    found = imported(AXOLOTL.replace("paged_adamw_8bit", name))
    assert f"optim: {name}" in found.text
    assert "optimizer" not in grades(found, "cannot") | grades(found, "speed")


@pytest.mark.parametrize(("lines", "trackers"), [
    ("mlflow_tracking_uri: http://a.example\nmlflow_experiment_name: e\nmlflow_run_name: r\n",
     [{"method": "mlflow", "experiment_name": "e", "run_name": "r"}]),
    ("use_mlflow: true\nuse_tensorboard: true\n",
     [{"method": "mlflow"}, {"method": "tensorboard"}]),
    ("use_trackio: true\ntrackio_project_name: p\ntrackio_run_name: r\n",
     [{"method": "trackio", "project": "p", "name": "r"}]),
    ("plugins: [axolotl.integrations.swanlab.SwanLabPlugin]\nuse_swanlab: true\n"
     "swanlab_project: p\nswanlab_workspace: w\nswanlab_mode: local\n",
     [{"method": "swanlab", "project": "p", "workspace": "w", "mode": "offline"}]),
    ("swanlab_project: p\nswanlab_mode: cloud\n", []),
])  # fmt: skip
def test_axolotls_trackers_are_those_of_their_names(imported, lines, trackers):
    found = imported(AXOLOTL.replace("wandb_project: mine\n", "") + lines)
    assert found.verdict == "same but for speed or logging"
    loaded = YAML(typ="safe").load(found.text).get("trackers", [])
    assert [one for one in loaded if one["method"] not in ("console", "jsonl", "wandb")] == trackers


def test_a_tracker_whose_package_is_missing_keeps_no_recipe_from_being_written(
    imported, monkeypatch
):
    monkeypatch.setattr("llmft_trackers.reporter.find_spec", lambda name: None)
    found = imported(f"{TRL}report_to: [trackio, mlflow]\n", trainer="dpo")
    assert "  - method: trackio\n  - method: mlflow\n" in found.text
    why = [finding.why for finding in found.findings if "mlflow" in finding.why]
    assert why == [
        "this tracker needs the package mlflow, which is not installed: pip install 'llmft[mlflow]'"
    ]


def test_llamafactorys_switch_adds_swanlab_to_its_other_trackers(imported):
    said = "report_to: tensorboard\nuse_swanlab: true\nswanlab_project: p\nswanlab_run_name: r\n"
    text = LLAMA.replace("dataset: mine", "dataset: identity")
    found = imported(f"{text}{said}swanlab_mode: local\n")
    acting = [one for one in found.findings if one.grade != "none"]
    assert not [one for one in acting if "swanlab" in one.key]
    last = "  - {method: swanlab, project: p, experiment_name: r, mode: offline}\n"
    assert found.text.endswith(f"  - method: tensorboard\n{last}"), found.findings


def test_axolotls_ray_workers_share_a_step(stage_of):
    ray = f"{AXOLOTL}use_ray: true\nray_num_workers: 3\n"
    assert stage_of(ray)[1].train.gradient_accumulation_steps == 3 * 4
    assert stage_of(ray.replace("use_ray: true\n", ""))[1].train.gradient_accumulation_steps == 4


def test_axolotls_loss_on_the_routers(stage_of):
    # Axolotl 0.18, schemas/deprecated.py: model_config is overrides_of_model_config; the loss is
    # transformers' own, with the coefficient of the model's config.
    text = f"{AXOLOTL}model_config: {{output_router_logits: true}}\n"
    assert stage_of(text)[1].alignment.router_aux_loss_coef == "config"


@pytest.mark.parametrize("path", ["TechxGenus/Meta-Llama-3-8B-AWQ", "nvidia/Qwen3-30B-A3B-NVFP4"])
def test_a_base_whose_files_hold_other_numbers_cannot_be_imported(imported, path):
    found = imported(AXOLOTL.replace("NousResearch/Llama-3.2-1B-Instruct", path))
    assert "a base stored by" in grades(found, "cannot")["base_model"]


@pytest.mark.parametrize(("template", "grade"), [
    ("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", None),
    ("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}", "decide"),
])  # fmt: skip
def test_another_end_of_text_changes_no_turn_that_the_template_ends(imported, template, grade):
    # TRL 0.19, SFTTrainer: the tokenizer's eos_token is another one; it is put after texts only.
    text = HANDBOOK.replace("[chosen, rejected]", "[messages]").replace("beta: 0.01\n", "")
    found = imported(f'{text}eos_token: <|im_end|>\nchat_template: "{template}"\n',
                     "recipes/sft/config.yaml")  # fmt: skip
    assert ("eos_token" in grades(found, "decide")) == (grade == "decide")
    assert ("stop: [" in found.text) == (grade is None)


def test_the_prompt_of_pairs_of_texts_is_no_whole_word_in_trl(imported):
    # TRL 1.16, data_utils.extract_prompt: chosen[:idx], idx where the two first differ.
    found = imported(TRL.replace("trl-lib/ultrafeedback_binarized", "Anthropic/hh-rlhf"),
                     trainer="dpo")  # fmt: skip
    assert found.verdict == "needs your decision"
    assert "inside of a word" in " ".join(f.why for f in found.findings)


def test_axolotls_streamed_rows(imported, stage_of):
    # Axolotl 0.18, utils/data/streaming.py: shuffle(buffer_size=streaming_multipack_buffer_size).
    text = f"{AXOLOTL}streaming: true\nmax_steps: 90\nsave_steps: 30\n"
    text = text.replace("val_set_size: 0.05\n", "").replace("saves_per_epoch: 1\n", "")
    text = text.replace("train[:500]", "train")
    _, stage = stage_of(text)
    assert (stage.data.streaming, stage.data.buffer_size) == (True, 10_000)
    assert imported(text).verdict == "same but for speed or logging"
    whole = imported(text.replace("sample_packing: true\n", ""))
    assert "streaming" in grades(whole, "cannot")


def test_axolotls_system_turns_are_left_out(stage_of):
    text = AXOLOTL.replace(
        "    split: train[:500]", "    split: train\n    drop_system_message: true"
    )
    assert stage_of(text)[1].data.drop_system


def test_axolotl_trains_the_weights_whose_names_begin_as_it_says(stage_of, imported):
    # Axolotl 0.18, utils/freeze.py: LayerNamePattern.match is re.match.
    names = "unfrozen_parameters: [^model.language_model.*, lm_head, embed_tokens]\n"
    text = AXOLOTL.replace("adapter: qlora", "adapter:").replace("load_in_4bit: true\n", names)
    adapter = stage_of(text)[1].adapter
    assert (adapter.method, adapter.trainable_parameters) == (
        "full", ["model.language_model*", "lm_head*"],
    )  # fmt: skip
    for odd in (AXOLOTL + names, text.replace("lm_head", "'layers.[0-9]'")):
        assert "unfrozen_parameters" in grades(imported(odd), "cannot")


def test_experts_get_no_update_where_the_tool_gives_them_none(imported, stage_of):
    # PEFT 0.19 and Axolotl 0.18 take torch.nn.Linear for "all linear", and experts are none now.
    from llmft_adapters.lora import Lora
    from llmft_adapters.lora.targets import adapted_experts, adapted_layers

    from llmft.importing.structure.weights import EXPERTS
    from tests.plugins.adapters.lora.test_target_names import moe

    base = "NousResearch/Llama-3.2-1B-Instruct"
    adapter = stage_of(AXOLOTL.replace(base, "mistralai/Mixtral-8x7B-v0.1"))[1].adapter
    assert adapter.exclude_modules == EXPERTS
    model = moe("mixtral")
    every = Lora.Config(method="lora")
    without = Lora.Config(method="lora", exclude_modules=EXPERTS)
    assert adapted_experts(model, every)
    assert not adapted_experts(model, without)
    assert adapted_layers(model, without) == adapted_layers(model, every)
    shared = imported(AXOLOTL.replace(base, "Qwen/Qwen1.5-MoE-A2.7B"))
    assert "experts here too" in grades(shared, "decide")["lora_target_linear"]
    assert stage_of(AXOLOTL)[1].adapter.exclude_modules is None


def test_axolotls_added_tokens_are_named_and_their_rows_start_otherwise(imported):
    # Axolotl 0.18, loaders/tokenizer.py adds them; transformers draws their rows around the mean.
    found = imported(f"{AXOLOTL}tokens: [<tool>, </tool>]\n")
    assert "start as the mean" in grades(found, "decide")["tokens"]
    assert 'add_tokens: ["<tool>", "</tool>"]' in found.text


def test_axolotls_trained_rows_of_tokens(imported, stage_of):
    # PEFT 0.19, LoraConfig.trainable_token_indices: a list is about the embedding alone.
    key = "peft_trainable_token_indices"
    text = f"{AXOLOTL}{key}: {{embed_tokens: [7, 9], lm_head: [7, 9]}}\n"
    assert stage_of(text)[1].adapter.trainable_token_indices == [7, 9]
    alone = imported(f"{AXOLOTL}{key}: [7, 9]\n")
    assert "weights of its own" in grades(alone, "decide")[key]


def test_llamafactorys_oft_is_pefts(stage_of, imported, tmp_path):
    # LLaMA-Factory 0.9.6, model/adapter.py: OFTConfig(oft_block_size=..., target_modules=...).
    text = LLAMA.replace("dataset: mine", "dataset: alpaca_en").replace("type: lora", "type: oft")
    adapter = stage_of(f"{text}oft_block_size: 16\n", str(tmp_path / "x.yaml"))[1].adapter
    assert (adapter.method, adapter.oft_block_size, adapter.target_modules) == (
        "oft", 16, "all-linear",
    )  # fmt: skip
    found = imported(f"{text}module_dropout: 0.1\n", str(tmp_path / "x.yaml"))
    assert "module_dropout" in grades(found, "cannot")


def test_llamafactorys_dynamic_fine_tuning_is_dft(stage_of, tmp_path):
    # LLaMA-Factory 0.9.6, dft_loss_func: each token's loss times its probability, as a constant.
    text = LLAMA.replace("dataset: mine", "dataset: alpaca_en") + "use_dft_loss: true\n"
    assert stage_of(text, str(tmp_path / "x.yaml"))[1].alignment.loss_type == "dft"


def test_axolotls_warm_up_is_rounded_as_it_rounds(stage_of):
    share = AXOLOTL.replace("warmup_steps: 10", "warmup_ratio: 0.1")
    train = stage_of(share)[1].train
    assert (train.warmup_ratio, train.warmup_rounding) == (0.1, "axolotl")
    counted = [
        stage_of(f"{share}max_steps: {steps}\n")[1].train.warmup_steps for steps in (39, 19, 9)
    ]
    assert counted == [3, 2, 0]  # int(3.9), int(1.9) that becomes 2, int(0.9)


def test_oumis_alpaca_rows_get_alpacas_openings_as_system_texts(stage_of, imported):
    text = OUMI.replace("    train_target: ALL_ASSISTANT_TURNS\n", "")
    text = text.replace("text_sft_jsonl", "yahma/alpaca-cleaned").replace(
        ", dataset_path: rows.jsonl", ""
    )
    _, stage = stage_of(text)
    data = Instruction(stage.data)
    bare = data.row({"instruction": "Name a gas.", "input": "", "output": "Neon."}, "")
    given = data.row({"instruction": "Translate.", "input": "dog", "output": "chien"}, "")
    openings = [row.messages[0]["content"] for row in (bare, given)]
    assert openings == [
        "Below is an instruction that describes a task. Write a response that appropriately"
        " completes the request.",
        "Below is an instruction that describes a task, paired with an input that provides further"
        " context. Write a response that appropriately completes the request.",
    ]
    assert given.messages[1]["content"] == "Translate.\n\n### Input:\ndog"
    assert bare.messages[1]["content"] == "Name a gas."
    assert imported(text).verdict == "same"


def test_several_data_sets_become_one_mixture(stage_of, imported):
    second = "  - {path: tatsu-lab/alpaca, type: alpaca, split: 'train[:20%]'}\nval_set_size"
    text = AXOLOTL.replace("val_set_size", second, 1)
    _, stage = stage_of(text)
    assert (stage.data.method, stage.data.mixing) == ("mix", "concatenate")
    first, other = stage.data.sources
    assert (first.method, first.learn) == ("chat", "all")
    assert (other.method, other.path, other.split) == ("jsonl", "tatsu-lab/alpaca", "train[:20%]")
    assert other.columns.prompt == "instruction"
    assert imported(text).verdict == "same but for speed or logging"
    assert re.findall(r"\n +- {method: (\w+)", imported(text).text) == ["chat", "jsonl"]
    unknown = imported(text.replace("type: alpaca", "type: my.own"))
    assert unknown.verdict == "cannot yet"
    assert "datasets[1].type" in grades(unknown, "cannot")


def test_llamafactorys_data_sets_are_joined_and_each_limited(stage_of, tmp_path):
    (tmp_path / "dataset_info.json").write_text(
        '{"mine": {"hf_hub_url": "a/b", "formatting": "sharegpt"},'
        ' "yours": {"file_name": "y.json"}}'
    )
    text = LLAMA.replace("dataset: mine", "dataset: mine, yours") + "max_samples: 7\n"
    _, stage = stage_of(text, str(tmp_path / "x.yaml"))
    assert [source.method for source in stage.data.sources] == ["chat", "instruction"]
    assert [source.limit for source in stage.data.sources] == [7, 7]


@pytest.fixture
def two_of_llama(tmp_path):
    """A configuration of LLaMA-Factory with two data sets, and where it stands."""
    (tmp_path / "dataset_info.json").write_text(
        '{"mine": {"hf_hub_url": "a/b", "formatting": "sharegpt", "num_samples": 9},'
        ' "yours": {"file_name": "y.json"}}'
    )
    return LLAMA.replace("dataset: mine", "dataset: mine, yours"), str(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("said", "stopping", "weights"),
    [
        ("mix_strategy: interleave_under\n", "first_exhausted", [None, None]),
        ("mix_strategy: interleave_over\ninterleave_probs: 0.7,0.3\n", "all_exhausted", [0.7, 0.3]),
    ],
)
def test_llamafactory_interleaves_as_datasets_does(stage_of, two_of_llama, said, stopping, weights):
    # LLaMA-Factory 0.9.6, data/data_utils.py, merge_dataset
    text, file = two_of_llama
    _, stage = stage_of(text + said, file)
    assert (stage.data.mixing, stage.data.stopping_strategy) == ("interleave", stopping)
    assert [source.weight for source in stage.data.sources] == weights


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("mix_strategy: interleave_once\n", "mix_strategy"),
        ("mix_strategy: interleave_over\ninterleave_probs: [1, 2, 3]\n", "interleave_probs"),
        ("mix_strategy: interleave_under\nval_size: 0.1\n", "val_size"),
    ],
)
def test_a_mixture_of_llamafactory_that_is_not_the_same_awaits_a_decision(
    imported, two_of_llama, said, key
):
    text, file = two_of_llama
    assert key in grades(imported(text + said, file), "decide")


@pytest.mark.parametrize(("said", "counts"), [("", [9, None]), ("max_samples: 4\n", [4, None])])
def test_llamafactorys_num_samples_are_drawn(stage_of, two_of_llama, said, counts):
    # 0.9.6, data/loader.py: a permutation's first, of which max_samples takes the first
    text, file = two_of_llama
    sources = stage_of(text + said, file)[1].data.sources
    assert [source.num_samples for source in sources] == counts
    assert [source.limit for source in sources] == [None, 4 if said else None]


def test_settings_of_a_schedule_may_be_json_text(stage_of, imported):
    # transformers' TrainingArguments parses lr_scheduler_kwargs that is text
    said = "lr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs: "
    _, stage = stage_of(TRL + said + "'{\"num_cycles\": 2}'\n", trainer="dpo")
    assert stage.train.lr_scheduler_kwargs.num_cycles == 2
    wrong = imported(TRL + said + "num_cycles=2\n", trainer="dpo")
    assert "no JSON object" in grades(wrong, "cannot")["lr_scheduler_kwargs"]


def test_numbers_in_a_list_of_a_command_are_numbers(loaded):
    # TRL's documentation of DPO, "Multi-loss combinations (MPO)"
    command = (
        "accelerate launch trl/scripts/dpo.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct"
        " --dataset_name trl-lib/ultrafeedback_binarized --output_dir x"
        " --loss_type sigmoid bco_pair sft --loss_weights 0.8 0.2 1.0"
    )
    _, stage = loaded(import_any(command, Choices()))
    assert stage.alignment.loss_weights == [0.8, 0.2, 1.0]


def test_a_whole_number_in_quotes_is_one(stage_of, two_of_llama):
    text, file = two_of_llama
    _, stage = stage_of(text.replace("cutoff_len: 1024", "cutoff_len: '512'"), file)
    assert stage.train.max_length == 512


def test_a_mixture_of_trl_and_of_the_handbook(stage_of):
    two = TRL.replace("dataset_name: trl-lib/ultrafeedback_binarized", "datasets:")
    two = two.replace(
        "datasets:\n",
        "datasets:\n  - {path: trl-lib/ultrafeedback_binarized}\n"
        "  - {path: HuggingFaceH4/ultrafeedback_binarized, split: train_prefs}\n",
    )
    _, stage = stage_of(two, trainer="dpo")
    assert [source.split for source in stage.data.sources] == ["train", "train_prefs"]
    assert {source.method for source in stage.data.sources} == {"preference"}


ROLES_OF_AXOLOTL = """    roles:
      user: [human, user]
      assistant: [gpt, model]
      tool: [observation]
"""


def test_axolotls_words_for_roles_are_read_where_chat_knows_them(stage_of, imported):
    text = re.sub(r"(    type: chat_template\n)", rf"\1{ROLES_OF_AXOLOTL}", AXOLOTL)
    assert ROLES_OF_AXOLOTL in text
    assert stage_of(text)[1].data.method == "chat"
    other = text.replace("[observation]", "[oracle]")
    assert list(grades(imported(other), "cannot")) == ["datasets[0].roles.tool"]
    for role, names in axolotl_data._USUAL_ROLES.items():
        assert {ROLES[name] for name in names} == {role}


def test_trls_kto_reads_the_rows_in_their_order_as_its_default_is(imported, stage_of):
    kto = TRL.replace("trl-lib/ultrafeedback_binarized", "trl-lib/kto-mix-14k")
    assert stage_of(kto, trainer="kto")[1].train.train_sampling_strategy == "sequential"
    said = imported(kto, trainer="kto").text.replace("\n      # ", " ")
    assert "estimates the KL divergence by another answer" in said
    assert stage_of(TRL, trainer="dpo")[1].train.train_sampling_strategy == "random"
    random = f"{kto}train_sampling_strategy: random\n"
    assert stage_of(random, trainer="kto")[1].train.train_sampling_strategy == "random"


@pytest.mark.parametrize("line", [
    "train_sampling_strategy: group_by_length", "group_by_length: true",
])  # fmt: skip
def test_rows_grouped_by_length_are_taken_over(line, stage_of, imported):
    text = f"{TRL}{line}\n"
    assert stage_of(text, trainer="dpo")[1].train.train_sampling_strategy == "group_by_length"
    key = line.partition(":")[0]
    grpo = imported(f"{text}reward_funcs: accuracy_reward\n", trainer="grpo", rows="prompt")
    assert key in grades(grpo, "none")
    plain = AXOLOTL.replace("sample_packing: true", "")
    assert (
        "group_by_length"
        in stage_of(f"{plain}group_by_length: true\n")[1].train.train_sampling_strategy
    )
    packed = imported(f"{AXOLOTL}group_by_length: true\n")
    assert "of like length already" in grades(packed, "speed")["group_by_length"]
    assert (
        stage_of(f"{AXOLOTL}group_by_length: false\n")[1].train.train_sampling_strategy == "random"
    )
    assert "train_sampling_strategy" in grades(
        imported(f"{TRL}train_sampling_strategy: batch_rebalance\n", trainer="dpo"), "speed"
    )


def test_axolotls_curriculum_is_the_files_order_where_it_does_not_shuffle_before(
    stage_of, imported
):
    plain = AXOLOTL.replace("sample_packing: true", "") + "curriculum_sampling: true\n"
    assert "curriculum_sampling" in grades(imported(plain), "cannot")
    in_order = f"{plain}shuffle_merged_datasets: false\n"
    assert stage_of(in_order)[1].train.train_sampling_strategy == "sequential"


def test_trls_kto_reads_rows_with_a_label(stage_of):
    kto = TRL.replace("trl-lib/ultrafeedback_binarized", "trl-lib/kto-mix-14k")
    _, stage = stage_of(kto + "undesirable_weight: 0.5\n", trainer="kto")
    assert (stage.alignment.method, stage.data.method) == ("kto", "unpaired")
    assert (stage.alignment.undesirable_weight, stage.train.learning_rate) == (0.5, 1e-6)


def test_a_split_that_is_none_needs_a_decision(imported):
    text = AXOLOTL.replace("split: train[:500]", "split: 'a[b'")
    assert "datasets[0].split" in grades(imported(text), "decide")


UNSLOTH = (
    "python unsloth-cli.py --model_name unsloth/llama-3-8b --dataset yahma/alpaca-cleaned"
    " --r 64 --learning_rate 2e-6 --use_rslora --bias none --output_dir out"
)


def test_unsloths_command_trains_on_alpaca_as_one_text(tmp_path, registry_of_methods):
    found = import_any(UNSLOTH, Choices())
    assert (found.peer, found.verdict) == ("unsloth", "same")
    path = tmp_path / "recipe.yaml"
    path.write_text(found.text, "utf-8")
    recipe = load_recipe(path, registry_of_methods).recipe
    stage = recipe.stages[0]
    assert (recipe.seed, recipe.model.dtype, stage.train.bf16) == (3407, "bfloat16", True)
    assert (stage.adapter.r, stage.adapter.use_rslora, stage.adapter.lora_alpha) == (64, True, 16)
    assert len(stage.adapter.target_modules) == 7
    train = stage.train
    assert (train.max_steps, train.warmup_steps, train.optim) == (400, 5, "adamw_8bit")
    row = Jsonl(stage.data).row({"instruction": "Add.", "input": "", "output": "3"}, "")
    assert row.text.endswith(
        "completes the request.\n\n    ### Instruction:\n    Add.\n\n    ### Input:\n    \n\n"
        "    ### Response:\n    3"
    )
    four = import_any(f"{UNSLOTH} --load_in_4bit", Choices())
    assert four.verdict == "needs your decision"
    texts = import_any(UNSLOTH.replace("yahma/alpaca-cleaned", "rows.jsonl"), Choices())
    assert texts.verdict == "cannot yet"


def test_an_update_of_the_embedding_and_the_output_layer_is_taken_over(stage_of):
    more = "lora_target_modules: [q_proj, embed_tokens, lm_head]\n"
    assert stage_of(AXOLOTL + more)[1].adapter.target_modules == [
        "all-linear", "embed_tokens", "lm_head",
    ]  # fmt: skip
    alone = AXOLOTL.replace("lora_target_linear: true\n", more)
    assert stage_of(alone)[1].adapter.target_modules == ["q_proj", "embed_tokens", "lm_head"]
    text = LLAMA.replace("dataset: mine", "dataset: identity")
    factory = stage_of(f"{text}lora_target: q_proj,lm_head\n")[1]
    assert factory.adapter.target_modules == ["q_proj", "lm_head"]


def test_a_regular_expression_and_noise_are_taken_over(stage_of):
    regex = r"model.layers.\d+.self_attn.(q|v)_proj"
    text = AXOLOTL.replace("lora_target_linear: true", f"lora_target_modules: '{regex}'")
    stage = stage_of(text + "neftune_noise_alpha: 5\n")[1]
    assert stage.adapter.target_modules == regex
    assert stage.train.neftune_noise_alpha == 5
    sft = TRL.replace("trl-lib/ultrafeedback_binarized", "trl-lib/Capybara") + "loss_type: dft\n"
    assert stage_of(sft, trainer="sft")[1].alignment.loss_type == "dft"


def test_a_reward_function_in_a_file_beside_the_configuration_is_named(imported, tmp_path):
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "rewards.py").write_text("def score(completions, **_): return [1.0]")
    text = TRL.replace("trl-lib/ultrafeedback_binarized", "trl-lib/tldr")
    text += "reward_funcs: [my.rewards.score]\nreward_weights: [0.5]\n"
    found = imported(text, str(tmp_path / "grpo.yaml"), trainer="grpo", rows="prompts")
    assert "reward_columns" in grades(found, "decide")["reward_funcs"]
    assert found.verdict == "needs your decision"
    assert "method: python" in found.text
    assert f"file: {tmp_path}/my/rewards.py, function: score, weight: 0.5" in found.text
    for other in ("reasoning_accuracy_reward", "my.others.score", "org/judge"):
        told = imported(text.replace("my.rewards.score", other), str(tmp_path / "grpo.yaml"),
                        trainer="grpo", rows="prompts")  # fmt: skip
        assert other in grades(told, "cannot")["reward_funcs"]


def test_trl_adds_the_routers_loss_of_a_mixture_and_the_recipe_says_so(stage_of):
    chat = TRL.replace("trl-lib/ultrafeedback_binarized", "trl-lib/Capybara")
    assert stage_of(chat, trainer="sft")[1].alignment.router_aux_loss_coef == "config"
    off = stage_of(f"{chat}router_aux_loss_coef: 0.0\n", trainer="sft")[1]
    assert off.alignment.router_aux_loss_coef == 0
    some = stage_of(f"{chat}router_aux_loss_coef: 0.5\n", trainer="sft")[1]
    assert some.alignment.router_aux_loss_coef == 0.5


PAIRS_OF_THE_HANDBOOK = """\
model_name_or_path: Qwen/Qwen2-0.5B-Instruct
torch_dtype: bfloat16
bf16: true
dataset_mixture:
  datasets:
    - {id: HuggingFaceH4/ultrafeedback_binarized, split: train_prefs, columns: [chosen, rejected]}
hub_model_id: mine
log_level: info
output_dir: out
"""


def test_the_handbooks_prompts_are_cut_at_512_tokens_where_nothing_is_said(stage_of, imported):
    # TRL 0.19, DPOConfig: max_prompt_length: 512; the last tokens stay.
    _, stage = stage_of(PAIRS_OF_THE_HANDBOOK, "recipes/x/dpo/config.yaml", trainer="dpo")
    assert (stage.train.max_prompt_length, stage.train.max_length) == (512, 1024)
    text = f"{PAIRS_OF_THE_HANDBOOK}max_prompt_length: 100\nhub_model_revision: v1\n"
    _, stage = stage_of(text, "recipes/x/dpo/config.yaml", trainer="dpo")
    assert stage.train.max_prompt_length == 100
    found = imported(text, "recipes/x/dpo/config.yaml", trainer="dpo")
    assert "hub_model_revision" not in grades(found, "decide")
    assert "max_prompt_length" in grades(
        imported(f"{TRL}max_prompt_length: 9\n", trainer="dpo"), "cannot"
    )


PRETRAIN = """\
model_name_or_path: Qwen/Qwen2.5-0.5B
stage: pt
finetuning_type: full
dataset: c4_demo
template: default
cutoff_len: 1024
bf16: true
output_dir: out
"""


def test_llamafactorys_documents_are_joined_and_cut(stage_of, imported):
    _, stage = stage_of(PRETRAIN)
    train, data = stage.train, stage.data
    assert (data.method, data.path, data.columns.text) == ("jsonl", "data/c4_demo.jsonl", "text")
    assert (train.packing_strategy, train.on_long_row, train.max_length) == (
        "wrapped",
        "split",
        1024,
    )
    assert train.cross_document_attention
    # What it leaves out of each thousand documents is not the same, and told.
    assert "thousand documents" in grades(imported(PRETRAIN), "decide")["stage"]
    apart = f"{PRETRAIN}packing: false\n"
    assert imported(apart).verdict == "same but for speed or logging"
    assert "never predicted" in grades(imported(apart), "logging")["stage"]
    assert stage_of(apart)[1].train.on_long_row == "truncate"
    llama = apart.replace("template: default", "template: llama3")
    assert "end_of_text" in grades(imported(llama), "decide")["template"]


def test_rows_that_axolotl_leaves_out_as_repeats_are_left_out(stage_of, imported):
    text = AXOLOTL + "dataset_exact_deduplication: true\n"
    assert stage_of(text)[1].data.drop.duplicates
    assert imported(text).verdict == "same but for speed or logging"
    second = text.replace("datasets:\n", "datasets:\n  - path: a/b\n    type: completion\n")
    assert "dataset_exact_deduplication" in grades(imported(second), "cannot")


def test_axolotls_simpo_is_cpos_with_its_settings(imported):
    # axolotl/core/builders/rl.py: CPOConfig(loss_type="simpo"); its forms of pairs await an import.
    found = imported(AXOLOTL + "rl: simpo\nrl_beta: 2.0\nsimpo_gamma: 1.1\ncpo_alpha: 0.0\n")
    said = grades(found, "cannot")
    assert {"datasets[0].type"} == set(said) - {"sample_packing"}, said
    assert not {"simpo_gamma", "cpo_alpha", "rl", "rl_beta"} & set(grades(found, "decide"))


def test_llamafactorys_muon_trains_an_adapters_matrices(stage_of, imported, tmp_path):
    file, text = str(tmp_path / "x.yaml"), LLAMA.replace("dataset: mine", "dataset: alpaca_en")
    muon = text + "use_muon: true\noptim: adamw_torch\n"
    assert stage_of(muon, file)[1].train.optim == "muon"
    assert stage_of(text + "use_muon: false\n", file)[1].train.optim == "adamw_torch_fused"
    full = imported(muon.replace("finetuning_type: lora", "finetuning_type: full"), file)
    assert "use_muon" in grades(full, "cannot")


def test_llamafactorys_sft_goes_on_with_an_adapter(stage_of, imported, tmp_path):
    # LLaMA-Factory 0.9.6, model/adapter.py: PeftModel.from_pretrained(..., is_trainable=True).
    file, text = str(tmp_path / "x.yaml"), LLAMA.replace("dataset: mine", "dataset: alpaca_en")
    more = text + "adapter_name_or_path: saves/first\n"
    assert stage_of(more, file)[1].start_from == "peft:saves/first"
    for other in (
        more + "create_new_adapter: true\n", text + "adapter_name_or_path: a,b\n",
        more.replace("stage: sft", "stage: dpo").replace("alpaca_en", "dpo_en_demo"),
    ):  # fmt: skip
        assert "adapter_name_or_path" in grades(imported(other, file), "cannot")
    assert stage_of(text + "create_new_adapter: true\n", file)[1].start_from is None
