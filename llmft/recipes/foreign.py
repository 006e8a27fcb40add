"""What a setting of another tool is called here: TRL, Axolotl, LLaMA-Factory, ms-swift, oumi ..."""

from __future__ import annotations

# Each foreign spelling -> the path of the setting here, from the block `stages[i]` for stage
# settings (train., adapter., alignment., data., evaluate.) or from the top. The name here stands
# first, the foreign ones are indented below it.
_SPELLINGS = """
adapter.method
    finetuning_type train_type tuner_type peft_type peft_method adapter_type
adapter.r
    lora_r lora_rank rank peft_r lora_dim
adapter.lora_alpha
    alpha lora_scaling lora_scale
adapter.lora_dropout
    dropout adapter_dropout peft_dropout
adapter.bias
    lora_bias
adapter.target_modules
    lora_target lora_target_modules lora_target_linear lora_modules
adapter.modules_to_save
    lora_modules_to_save additional_target
adapter.use_rslora
    rslora use_rslora_scaling
adapter.init_lora_weights
    init_weights peft_init_lora_weights
adapter.num_virtual_tokens
    num_prompt_tokens prefix_length prompt_length pre_seq_len
adapter.ephemeral_gpu_offload
    dora_ephemeral_gpu_offload

alignment.method
    trainer_type training_type rl rlhf_type train_stage objective loss_type
alignment.beta
    dpo_beta pref_beta orpo_alpha orpo_beta rl_beta
alignment.kl_coef
    init_kl_coef kl_coeff kl_penalty kl_beta
alignment.label_smoothing
    dpo_label_smoothing
alignment.reward_model
    reward_model_path reward_model_name_or_path

data.method
    dataset_format dataset_type dataset_name_or_type formatting
data.path
    dataset_name datasets dataset dataset_path data_path dataset_dir data_files train_file
data.split
    dataset_split train_split dataset_train_split train_on_split
data.columns
    column_mapping field_mapping columns_mapping
data.limit
    max_samples max_train_samples sample_size

train.num_train_epochs
    epochs num_epochs n_epochs epoch max_epochs train_epochs
train.max_steps
    steps num_steps max_train_steps total_steps num_training_steps num_train_steps train_steps
train.per_device_train_batch_size
    micro_batch_size batch_size per_gpu_train_batch_size per_device_batch_size
    mini_batch_size mbs bs
train.per_device_eval_batch_size
    eval_batch_size val_batch_size per_gpu_eval_batch_size
train.gradient_accumulation_steps
    grad_accum grad_accumulation_steps gradient_accumulation accumulate_grad_batches
    accumulation_steps gas
train.learning_rate
    lr peak_lr base_lr learningrate
train.lr_scheduler_type
    lr_scheduler scheduler scheduler_type lr_schedule
train.warmup_steps
    num_warmup_steps lr_warmup_steps warmup_iters
train.warmup_ratio
    warmup warmup_fraction warmup_proportion
train.optim
    optimizer optimizer_name optimizer_type optimiser optim_type
train.weight_decay
    wd decay l2
train.adam_beta1
    beta1 adam_b1
train.adam_beta2
    beta2 adam_b2
train.adam_epsilon
    eps adam_eps epsilon
train.max_grad_norm
    gradient_clipping grad_clip grad_clip_norm clip_grad_norm gradient_clip_val max_norm
train.bf16
    use_bfloat16 use_bf16 mixed_precision precision amp
train.tf32
    allow_tf32 use_tf32 enable_tf32
train.gradient_checkpointing
    grad_checkpointing activation_checkpointing use_gradient_checkpointing
    enable_gradient_checkpointing recompute
train.max_length
    cutoff_len sequence_len max_seq_length max_seq_len seq_length model_max_length
    max_sequence_length seq_len block_size context_length
train.packing
    sample_packing pack pack_sequences use_packing neat_packing
train.on_long_row
    truncation truncation_strategy excess_length_strategy
train.logging_steps
    log_interval log_every log_steps log_every_n_steps
train.save_strategy
    save_policy saving_strategy
train.save_steps
    save_interval save_every checkpoint_every saves_per_epoch
train.save_total_limit
    keep_checkpoints max_checkpoints checkpoint_limit

evaluate.metrics
    metric eval_metrics compute_metrics
evaluate.eval_strategy
    evaluation_strategy eval_policy do_eval_during_training
evaluate.eval_steps
    eval_interval eval_every evals_per_epoch val_check_interval
evaluate.load_best_model_at_end
    load_best_model save_best_model keep_best
evaluate.metric_for_best_model
    best_metric monitor
evaluate.early_stopping_patience
    early_stopping patience
evaluate.holdout
    val_set_size val_size test_size eval_size split_dataset_ratio validation_split
evaluate.split
    eval_split validation_split_name dataset_test_split test_split eval_dataset
evaluate.limit
    eval_limit max_eval_samples
evaluate.max_new_tokens
    max_gen_tokens generation_max_length max_new_token

model.path
    model_id model_name_or_path model_name base_model base_model_name model_path
    pretrained_model_name_or_path hf_model checkpoint
model.revision
    model_revision commit branch base_model_revision
model.dtype
    torch_dtype model_dtype torch_dtype_str weights_dtype
model.attn_implementation
    flash_attn flash_attention attention_implementation use_flash_attention_2 attn_impl
    flash_attn_2
model.chat_template
    template chat_format prompt_template conversation_template
model.append_eos
    add_eos add_eos_token append_eos_token
model.tokenizer
    tokenizer_name tokenizer_path tokenizer_name_or_path tokenizer_id
model.quantization.load_in_4bit
    use_4bit quantization_bit quant_bits bits int4
model.quantization.load_in_8bit
    use_8bit int8
model.quantization.bnb_4bit_quant_type
    quant_type bnb_4bit_type
model.quantization.bnb_4bit_use_double_quant
    use_double_quant double_quant use_nested_quant double_quantization
model.quantization.bnb_4bit_compute_dtype
    compute_dtype bnb_compute_dtype
model.quantization
    quantization_config bnb_config quant quantize quantisation

output_dir
    output save_dir out_dir output_path
name
    run_name experiment_name wandb_run_name exp_name run_id job_name
seed
    random_seed data_seed random_state
trackers
    report_to log_with logger loggers logging use_wandb wandb wandb_project tracker reporter
stages
    pipeline steps_list phases
"""

_LEARN = (
    "drop it; the loss is on answers. For all tokens: learn: every_token in the data block of"
    " method: chat, or columns: {text: ...} of method: jsonl"
)
# Settings that have no counterpart: why, and what to do instead.
REMARKS = {
    "hub_model_id": "write push_to_hub: {repo_id: ...} at the top of the recipe",
    "hub_private_repo": "write push_to_hub: {private: ...} at the top of the recipe",
    "stage": "write a list under stages; what each optimises stands under its alignment",
    "use_cache": "drop it; the key-value cache is used for answers and never in training",
    "task_type": "drop it; the alignment's method says what is trained",
    "fp16": "there is no float16 training; write bf16: true, or drop it",
    "trust_remote_code": "drop it; a recipe can never allow foreign code to run",
    "use_dora": "write method: dora in the adapter block",
    "use_lora": "write method: lora in the adapter block",
    "use_peft": "drop it; what is trained is the stage's adapter",
    "token_dim": "drop it; it is read from the model",
    "num_layers": "drop it; it is read from the model",
    "num_attention_heads": "drop it; it is read from the model",
    "num_transformer_submodules": "drop it; it is read from the model",
    "deepspeed": "in place of ZeRO-3 write shard_base: true in the train block"
    " (docs/processes.md); drop it otherwise",
    "fsdp": "in place of full_shard write shard_base: true in the train block"
    " (docs/processes.md); drop it otherwise",
    "ddp_find_unused_parameters": "drop it; llmft sums gradients by itself",
    "use_vllm": "drop it; the model that is trained samples its answers itself",
    "use_liger_kernel": "write fused: liger in the model block",
    "torch_compile": "write fused: compile in the model block, which compiles norms",
    "ema": "write {method: ema, decay: ...} in the stage's list of plugins",
    "loss_watchdog_threshold": "write {method: loss_watchdog, threshold: ...} in the stage's list"
    " of plugins",
    "auto_find_batch_size": "drop it; `llmft plan` says whether a batch fits, and what to change",
    "shuffle": "drop it; rows are shuffled in each epoch, by the recipe's seed, unless the train"
    " block has train_sampling_strategy: sequential",
    "device_map": "drop it; llmft places the model itself",
    "device": "drop it; llmft uses the accelerator that it finds",
    "resume_from_checkpoint": "drop it, and resume by: llmft run RECIPE --resume",
    "overwrite_output_dir": "drop it; no two runs share a folder",
    "do_train": "drop it; a stage always trains",
    "do_eval": "write an evaluate: block in the stage",
    "eval_on_start": "drop it; a stage with an evaluate: block is always scored before training",
    "eval_delay": "drop it; a stage is scored from the start on",
    "remove_unused_columns": "drop it; the dataset's method picks the columns",
    "group_by_length": "write train_sampling_strategy: group_by_length in the stage's train block",
    "disable_shuffling": "write train_sampling_strategy: sequential in the stage's train block",
    "gradient_checkpointing_kwargs": "it belongs under train, with every_n_layers; use_reentrant is"
    " always false here",
    "use_reentrant": "drop it; layers are computed again without reentry",
    "pad_to_sequence_len": "drop it; batches carry no padding",
    "train_on_inputs": _LEARN,
    "completion_only_loss": _LEARN,
    "assistant_only_loss": _LEARN,
    "dataloader_num_workers": "drop it; rows are encoded before training",
    "val_set_ratio": "write holdout: in the stage's evaluate block",
    "do_sample": "drop it; answers are generated greedily",
    "resize_vocab": "drop it; the embedding gets a row for each of model.add_tokens by itself",
}


def _table() -> dict[str, str]:
    table: dict[str, str] = {}
    ours = ""
    for line in _SPELLINGS.splitlines():
        if line.startswith(" "):
            table.update(dict.fromkeys(line.split(), ours))
        elif line:
            ours = line
    return table


FOREIGN: dict[str, str] = _table()
"""Each foreign spelling -> the path of the setting here."""
