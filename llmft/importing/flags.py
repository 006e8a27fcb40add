"""The table of imports: each flag of a command line, and the recipe's setting that it becomes."""

from __future__ import annotations

from llmft.recipes.foreign import FOREIGN, REMARKS
from llmft.system.nearest import did_you_mean

# A home, indented below it its flags. A home that ends with '.' is a block whose settings have the
# flags' own names.
_HOMES = """
adapter.
    r lora_alpha lora_dropout bias target_modules use_rslora init_lora_weights modules_to_save
    ephemeral_gpu_offload num_virtual_tokens token_dim num_transformer_submodules
    num_attention_heads num_layers encoder_hidden_size encoder_reparameterization_type
    encoder_num_layers encoder_dropout prefix_projection prompt_tuning_init prompt_tuning_init_text
adapter.method
    peft_type use_dora
adapter.r
    lora_r
adapter.bias
    lora_bias
adapter.target_modules
    lora_target_modules
adapter.ephemeral_gpu_offload
    dora_ephemeral_gpu_offload
data.method
    dataset_name dataset
data.split
    dataset_split
data.limit
    max_train_samples
model.
    dtype attn_implementation
model.path
    model_id model_name_or_path
model.revision
    model_revision
model.dtype
    torch_dtype
model.quantization.
    load_in_4bit load_in_8bit bnb_4bit_quant_type bnb_4bit_use_double_quant
    bnb_4bit_compute_dtype
train.
    num_train_epochs max_steps per_device_train_batch_size per_device_eval_batch_size
    gradient_accumulation_steps learning_rate lr_scheduler_type warmup_steps warmup_ratio optim
    weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm bf16 tf32 gradient_checkpointing
    max_length max_prompt_length packing logging_steps save_strategy save_steps save_total_limit
    train_sampling_strategy
train.train_sampling_strategy
    group_by_length
train.optim
    optimizer
train.bf16
    use_bfloat16
train.max_length
    max_seq_length
output_dir
    output_dir
seed
    seed
trackers
    report_to
push_to_hub
    push_to_hub
push_to_hub.repo_id
    hub_model_id
push_to_hub.private
    hub_private_repo
"""

# Flags with no home, whatever their value: the block whose comment tells of them, and why.
HOMELESS: dict[str, tuple[str, str]] = {
    "use_cache": ("model", "the key-value cache is used for answers, and never in training"),
    "do_train": ("", "a stage always trains"),
    "overwrite_output_dir": ("", "no two runs share a folder"),
    "remove_unused_columns": ("data", "the method picks the columns"),
    "dataloader_num_workers": ("train", "rows are encoded before training"),
    "device_map": ("model", "llmft places the model itself"),
    "trust_remote_code": ("model", "a recipe can never allow foreign code to run"),
}

TASKS = {"task_type": ("alignment", "CAUSAL_LM", "what 'sft' trains")}
"""Flags that may have one value only: their block, that value, and what it comes to here."""

ADAPTED = ("use_peft", "use_lora")
"""Flags that say whether an adapter is trained; which one, `--method` or the command says."""

TEXTS = (
    "model.path", "model.revision", "output_dir", "data.method", "data.split",
    "push_to_hub.repo_id",
)  # fmt: skip
"""Settings whose value is one text, also where it looks like a number."""

OTHER_ALIGNMENTS = (
    "dpo", "orpo", "ppo", "reward", "kto", "cpo", "simpo", "grpo", "rloo", "bco", "gkd", "rlhf",
)  # fmt: skip
"""Words in a script's name that say that it does something else than sft."""


def _table() -> dict[str, str]:
    table: dict[str, str] = {}
    home = ""
    for line in _HOMES.splitlines():
        if line.startswith(" "):
            table |= {flag: home + flag if home.endswith(".") else home for flag in line.split()}
        elif line:
            home = line
    return table


HOMES: dict[str, str] = _table()
"""Each flag -> the path of its setting, from the stage's blocks or from the top of a recipe."""


def suggested_fix(flag: str) -> str:
    """Return what to do about a flag that has no entry in the table."""
    home = FOREIGN.get(flag, "")
    if known := next((other for other, place in HOMES.items() if place == home), ""):
        return f"write --{known}"
    if home:
        return f"leave it out, and set {home} in the recipe that is written"
    if flag in REMARKS:
        return REMARKS[flag]
    if flag.startswith("no_") and flag[3:] in HOMES:
        return f"write --{flag[3:]} False"
    near = did_you_mean(flag, [*HOMES, *HOMELESS, *TASKS])
    return near or "leave it out; 'llmft show METHOD' lists a method's settings"


METHODS = {
    "lora": "lora",
    "qlora": "qlora",
    "dora": "dora",
    "prefix": "prefix",
    "prefixtuning": "prefix",
    "ptuning": "ptuning",
    "prompt": "prompt",
    "prompttuning": "prompt",
}
"""How titles, scripts and `--peft_type` spell the adapters, in small letters without signs."""

RENAMED = {
    ("train.optim", "adamw_hf"): "adamw_torch",
    ("train.optim", "adamw"): "adamw_torch",
    ("train.optim", "adamw_bnb_8bit"): "adamw_8bit",
    ("train.optim", "paged_adamw"): "paged_adamw_32bit",
    ("adapter.target_modules", "all"): "all-linear",
    ("model.dtype", "bf16"): "bfloat16",
    ("model.dtype", "fp16"): "float16",
    ("model.dtype", "fp32"): "float32",
}
"""(home, a value in another tool's spelling) -> the value here."""

MOVED_MODELS = (
    (
        r"/kaggle/input/llama-3\.(\d)/(?:transformers|pytorch)/(\d+)b-instruct/\d+",
        r"meta-llama/Llama-3.\1-\2B-Instruct",
    ),
    (
        r"/kaggle/input/llama-3\.(\d)/(?:transformers|pytorch)/(\d+)b/\d+",
        r"meta-llama/Llama-3.\1-\2B",
    ),
)
"""Folders that exist on Kaggle only, and the same models on the hub."""
