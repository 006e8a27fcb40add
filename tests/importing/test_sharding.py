"""Models that other tools divide among processes: FSDP's full_shard, ZeRO's third stage."""

from __future__ import annotations

import pytest

AXOLOTL = """\
base_model: Qwen/Qwen2.5-0.5B-Instruct
{adapter}
datasets:
  - path: rows.jsonl
    type: chat_template
sequence_len: 2048
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 3
learning_rate: 2e-4
bf16: true
{more}
"""
LORA = "adapter: lora\nlora_r: 8\nlora_alpha: 16\nlora_target_linear: true"


@pytest.mark.parametrize(
    ("more", "divided"),
    [
        ("fsdp: [full_shard, auto_wrap]\nfsdp_config: {fsdp_sharding_strategy: FULL_SHARD}", True),
        ("fsdp_version: 2\nfsdp_config: {reshard_after_forward: true}", True),
        ("fsdp_version: 2\nfsdp_config: {reshard_after_forward: false}", False),
        ("fsdp: [shard_grad_op]\nfsdp_config: {fsdp_sharding_strategy: SHARD_GRAD_OP}", False),
        ("deepspeed: deepspeed_configs/zero3_bf16.json", True),
        ("deepspeed: deepspeed_configs/zero2.json", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("adapter", [LORA, ""])
def test_axolotl(stage_of, more, divided, adapter):
    _, stage = stage_of(AXOLOTL.format(adapter=adapter, more=more))
    assert stage.train.shard_base is divided


def test_weights_in_8_bits_are_left_whole(stage_of):
    more = "load_in_8bit: true\ndeepspeed: deepspeed_configs/zero3.json"
    _, stage = stage_of(AXOLOTL.format(adapter=LORA, more=more))
    assert stage.train.shard_base is False


@pytest.mark.parametrize(
    ("more", "divided"),
    [
        ("fsdp: {enable_fsdp: true, sharding_strategy: FULL_SHARD}", True),
        ("fsdp: {enable_fsdp: true}", True),
        ("fsdp: {enable_fsdp: true, sharding_strategy: SHARD_GRAD_OP}", False),
        ("fsdp: {enable_fsdp: false}", False),
        ("deepspeed: {enable_deepspeed: true, zero_stage: ZERO_3}", True),
        ("deepspeed: {enable_deepspeed: true, zero_stage: ZERO_2}", False),
    ],
)
def test_oumi(stage_of, more, divided):
    text = f"""\
model: {{model_name: Qwen/Qwen2.5-0.5B-Instruct, torch_dtype_str: bfloat16}}
data: {{train: {{datasets: [{{dataset_name: yahma/alpaca-cleaned}}]}}}}
training: {{trainer_type: TRL_SFT, use_peft: true, max_steps: 10, output_dir: out}}
peft: {{lora_r: 8, lora_alpha: 16}}
{more}
"""
    _, stage = stage_of(text, peer="oumi")
    assert stage.train.shard_base is divided


@pytest.mark.parametrize(("name", "divided"), [("zero3", True), ("zero3_offload", True),
                                               ("zero2", False)])  # fmt: skip
def test_ms_swift(recipe_of, name, divided):
    command = (
        "swift sft --model Qwen/Qwen2.5-0.5B-Instruct --train_type lora --dataset rows.jsonl"
        f" --torch_dtype bfloat16 --deepspeed {name}"
    )
    _, stage = recipe_of(command)
    assert stage.train.shard_base is divided
