"""What a method of another name, in papers and other tools, is called here."""

from __future__ import annotations

from collections.abc import Mapping

OTHER_NAMES: Mapping[str, Mapping[str, str]] = {
    "alignment": {
        "simpo": "write method: cpo, with loss_type: simpo and cpo_alpha: 0",
        "ipo": "write method: dpo, with loss_type: [ipo]",
        "dapo": "write method: grpo, with loss_type: dapo",
        "distillation": "write method: gkd, with lmbda: 1 and beta: 1 for on-policy distillation",
        "on_policy_distillation": "write method: gkd, with lmbda: 1 and beta: 1",
        "kd": "write method: gkd, with lmbda: 0",
        "dr_grpo": "write method: grpo, with loss_type: dr_grpo",
        "gspo": "write method: grpo, with importance_sampling_level: sequence",
        "rm": "write method: reward",
        "reward_model": "write method: reward",
        "rlhf": "write three stages: sft, reward and ppo (docs/rlhf.md)",
        "pt": "write method: sft, on rows of text (docs/data.md)",
        "pretrain": "write method: sft, on rows of text (docs/data.md)",
        "pretraining": "write method: sft, on rows of text (docs/data.md)",
        "seq_cls": "write method: classification",
        "sequence_classification": "write method: classification",
    },
    "adapter": {
        "rslora": "write method: lora, with use_rslora: true",
        "pissa": "write method: lora, with init_lora_weights: pissa",
        "freeze": "write method: full, and which weights it trains (docs/full.md)",
        "none": "write method: full, which trains all weights",
        "prefix_tuning": "write method: prefix",
        "p_tuning": "write method: ptuning",
        "prompt_tuning": "write method: prompt",
    },
    "dataset": {
        "sharegpt": "write method: chat, with messages_column where it is not messages",
        "messages": "write method: chat",
        "alpaca": "write method: jsonl, with prompt_style: alpaca",
        "json": "write method: jsonl, which reads .json too",
        "csv": "write method: jsonl, which reads .csv too",
        "parquet": "write method: jsonl, which reads .parquet too",
        "text": "write method: jsonl, with columns: {text: text}",
        "pairwise": "write method: preference",
    },
}
"""By kind: the name elsewhere -> what to write."""
