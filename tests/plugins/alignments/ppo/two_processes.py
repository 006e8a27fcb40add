"""Trains a tiny policy by PPO in this process or among several, and writes what came out.

torchrun --nproc_per_node 2 tests/plugins/alignments/ppo/two_processes.py OUT.json PER_DEVICE_BATCH
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

torch.set_num_threads(1)


def main() -> None:
    from accelerate import Accelerator
    from llmft_adapters.lora import Lora
    from llmft_alignments.online.diagnostics import Diagnostics
    from llmft_alignments.online.sampling import rollout_row
    from llmft_alignments.ppo.config import PpoConfig
    from llmft_alignments.ppo.objective import PpoObjective
    from llmft_alignments.ppo.rollouts import Judged

    from llmft.api import EncodedPrompt, SamplingParams
    from llmft.api.train_settings import TrainSettings
    from llmft.modeling.decoding import decode
    from llmft.modeling.tiny_models import tiny_llama
    from llmft.system import distributed
    from llmft.toolkit import add_value_head, token_stats, values
    from llmft.training import loop

    Accelerator(cpu=True)
    torch.manual_seed(5 + distributed.rank())  # another start in each process must not matter
    base = tiny_llama().requires_grad_(False)
    base.lm_head.weight.mul_(20)
    model = Lora(Lora.Config.model_validate({"method": "lora", "r": 4})).attach(base)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_A" in name and distributed.rank() == 0:
                parameter.normal_(std=0.1)
    add_value_head(model)
    prompts = [
        EncodedPrompt(tuple(range(k + 3, k + 5 + k % 4)), (-100,) * (2 + k % 4), f"prompt {k}")
        for k in range(13)  # the last step has one prompt, so a process of two has none
    ]

    class RolloutSampler:
        def sample_rollouts(self, prompts, seed, numbers, *, model=None, stopping=lambda: False):
            params = SamplingParams(5, stop_token_ids=(256, 0, 1, 2))
            ids = [prompt.input_ids for prompt in prompts]
            return decode(policy, ids, params, seed=(3, *seed), batch_size=3, numbers=numbers)

        more_stops = ()
        context = SimpleNamespace(
            models=SimpleNamespace(model=model, starts_as_reference=False),
            train=SimpleNamespace(bf16=False),
        )

        def judge(self, prompts, answers):
            rows = [rollout_row(p, a) for p, a in zip(prompts, answers, strict=True)]
            if not rows:
                none = torch.zeros(0)
                return Judged([], [], [], none, none, none, none, none.long(), none)
            with torch.no_grad():
                stats = token_stats(policy, rows)
                value_N = values(policy, stats.hidden_ND)
            scores = torch.tensor([sum(t % 10 for t in a.ids) / 10 for a in answers])
            return Judged(
                rows, answers, [""] * len(rows), stats.logps_N, stats.entropy_N, value_N,
                stats.logps_N - 0.1, stats.row_N, scores,
            )  # fmt: skip

    policy = model
    options = {
        "method": "ppo", "reward_model": "none", "num_generations": 2, "num_mini_batches": 3,
        "num_ppo_epochs": 2, "temperature": 1.0, "whiten_rewards": True, "reward_scaling": True,
        "adap_kl_ctrl": True, "target": 0.2, "horizon": 50,
    }  # fmt: skip
    objective = PpoObjective(
        PpoConfig.model_validate(options), RolloutSampler(), Diagnostics(lambda text: None), seed=3
    )
    settings = TrainSettings(
        max_steps=5, per_device_train_batch_size=int(sys.argv[2]), learning_rate=3e-3
    )
    curve = []
    loop.train(
        model, prompts, objective, settings, seed=3, online=objective,
        on_step=lambda step, steps, metrics, log: curve.append(dict(metrics)),
    )  # fmt: skip
    if distributed.rank() == 0:
        weights = {n: p.detach().flatten().tolist() for n, p in model.named_parameters()
                   if p.requires_grad}  # fmt: skip
        Path(sys.argv[1]).write_text(json.dumps({"curve": curve, "weights": weights}))


if __name__ == "__main__":
    main()
