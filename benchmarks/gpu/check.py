"""What llmft does on one GPU: is it right, how fast, with what beside it. Most important first.

    python benchmarks/gpu/check.py --out FOLDER [--seconds 540] [--only PART ...] [--dry]

Each part has the seconds that it needs, and is left out where fewer are left. Results are added to
FOLDER/results.jsonl as they come; a second call goes on with the parts that are not there yet.
--dry tries the parts on the CPU with tiny shapes.

Shapes are those of Llama 3 8B with random weights (nothing is downloaded): 8,192 tokens a pass,
LoRA of rank 16 on all linear layers, bfloat16 base and autocast, fused AdamW. `share_of_matmul` is
tokens a second times 32.1 GFLOP (nothing that is computed twice counted twice), over the rate of an
8192 x 8192 x 8192 bfloat16 product measured at the start.

A machine that has torch, triton, accelerate and pyarrow only needs these wheels beside llmft's own:
transformers, tokenizers, huggingface_hub (with httpx2, httpcore2, truststore, hf-xet), peft, trl,
datasets, dill, multiprocess, xxhash, pydantic, pydantic_core, annotated_types, typing_inspection,
ruamel.yaml, rapidfuzz, krippendorff, bitsandbytes (of its libraries, that of the machine's CUDA is
enough: 4 MB of 43) and, for the last comparison, liger_kernel. Together 37 MB.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["LLMFT_CACHE"] = "off"
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)

import correctness  # noqa: E402
import shape  # noqa: E402
import torch  # noqa: E402
from record import Check  # noqa: E402

from llmft.modeling.fused import fuse  # noqa: E402
from llmft.modeling.levers import Fused, proven  # noqa: E402
from llmft.modeling.recompute import checkpoint_layers  # noqa: E402


def environment(check: Check) -> None:
    """Tell versions and the chip, and measure the rate of its matrix products."""
    import accelerate
    import bitsandbytes
    import peft
    import transformers

    libraries = (torch, transformers, peft, accelerate, bitsandbytes)
    check.say(**{library.__name__: library.__version__ for library in libraries})
    on_gpu = check.device.type == "cuda"
    size = 8192 if on_gpu else 256
    a = torch.randn(size, size, device=check.device, dtype=torch.bfloat16)
    ms = check.timed(lambda: a @ a, 20)
    check.ceiling = 2 * size**3 / ms * 1e3
    chip = torch.cuda.get_device_name() if on_gpu else "cpu"
    check.say(chip=chip, matmul_tflops=round(check.ceiling / 1e12, 1))


def lora(check: Check) -> None:
    """LoRA at 8,192 tokens a pass, checkpointed and not, rows alike and not, and small passes."""
    shape.speed(check, "lora 4x2048 checkpointed")
    shape.speed(check, "lora 4x2048", checkpointed=False)
    shape.speed(check, f"lora {MIXED_NAME}, checkpointed", lengths=MIXED)
    shape.speed(check, "lora 4x2048 dropout 0.1 checkpointed", lora_dropout=0.1)
    shape.speed(check, "lora 1x2048 checkpointed", lengths=(2048,))
    shape.speed(check, "lora 1x64 checkpointed", lengths=(64,))


def others(check: Check) -> None:
    """DoRA, QLoRA, DoRA over 4 bits, and DoRA with dropout over 4 bits."""
    shape.speed(check, "dora 4x2048 checkpointed", "dora")
    shape.speed(check, "qlora 4x2048 checkpointed", "qlora", bits=4)
    shape.speed(check, "dora 4 bits 4x2048 checkpointed", "dora", bits=4)
    options = {"bits": 4, "lengths": (2048,), "lora_dropout": 0.1}
    shape.speed(check, "dora 4 bits dropout 0.1 1x2048 checkpointed", "dora", **options)
    shape.speed(check, "dora 1x64 checkpointed", "dora", lengths=(64,))


def liger(check: Check) -> None:
    """LoRA with `model.fused: liger`, proved as a run proves it, on a small copy."""
    proved_fused(check, "liger")

    def change(model: Any) -> None:
        fuse(model, "liger")

    with plain_llama():
        shape.speed(check, "lora, Liger's layers, 4x2048 checkpointed", change=change)
        shape.speed(check, "lora, Liger's layers, 4x2048", change=change, checkpointed=False)
        shape.speed(check, "dora, Liger's layers, 4x2048 checkpointed", "dora", change=change)
        shape.speed(check, "lora, Liger's layers, 1x64 checkpointed", lengths=(64,), change=change)
        options = {"bits": 4, "change": change}
        shape.speed(check, "qlora, Liger's layers, 4x2048 checkpointed", "qlora", **options)
        options = {"lengths": MIXED, "change": change}
        shape.speed(check, f"lora, Liger's layers, {MIXED_NAME}, checkpointed", **options)


def compiled(check: Check) -> None:
    """LoRA with `model.fused: compile`."""
    proved_fused(check, "compile")

    def change(model: Any) -> None:
        fuse(model, "compile")

    shape.speed(check, "lora, compiled norms, 4x2048 checkpointed", change=change)


def proved_fused(check: Check, how: Fused) -> None:
    """Tell which levers are right with these kernels on a small copy of the shape."""
    config = shape.base(check).config
    found = proven(config, "sdpa", "bfloat16", how)
    check.say(fused=how, wrong=found.wrong_padded or found.unproven, left_out=found.off())


@contextmanager
def plain_llama() -> Iterator[None]:
    """Put back, after the block, what Liger replaces in transformers for the whole process."""
    from transformers.models.llama import modeling_llama

    before = dict(vars(modeling_llama))
    forward = modeling_llama.LlamaForCausalLM.forward
    try:
        yield
    finally:
        vars(modeling_llama).update(before)
        modeling_llama.LlamaForCausalLM.forward = forward


MIXED = (3200, 1800, 1200, 800, 500, 300, 200, 100, 60, 32)
MIXED_NAME = "10 rows of 32 to 3200"


def profile(check: Check) -> None:
    """Write which kernels take the time (profile-*.txt), and count the host's waits in a step."""
    for method in ("dora", "lora"):
        _profile(check, method)


def _profile(check: Check, method: str) -> None:
    model = shape.base(check)
    checkpoint_layers(model)
    model = shape.attach(model, method)
    on_gpu = check.device.type == "cuda"
    lengths = [2048 if on_gpu else 64] * 4

    def run(steps: int) -> None:
        items = shape.rows(check, lengths * steps)
        shape.trained(check, model, items, 4, steps, gradient_checkpointing=True)

    run(2)
    with torch.profiler.profile() as seen:
        run(1)
    by = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    table = seen.key_averages().table(sort_by=by, row_limit=50)
    (check.out / f"profile-{method}.txt").write_text(table)
    if not on_gpu:
        return
    waits = []
    for steps in (1, 3):  # what comes once is not a step's
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            run(steps)
            torch.cuda.set_sync_debug_mode("default")
        lines = (f"{'/'.join(w.filename.split('/')[-2:])}:{w.lineno}"
                 for w in told if "synchroniz" in str(w.message))  # fmt: skip
        waits.append(Counter(lines))
    each = {line: n / 2 for line, n in (waits[1] - waits[0]).items()}
    check.say(profiled=method, waits_a_step=sum(each.values()), by_line=each)


def trl(check: Check) -> None:
    """TRL's SFTTrainer over the same base, rows and LoRA, without Liger's kernels and with."""
    with plain_llama():
        _trl(check, kernels=False)
        if check.device.type == "cuda":
            _trl(check, kernels=True)


def _trl(check: Check, kernels: bool) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from llmft.modeling.tiny_models import tiny_tokenizer

    on_gpu = check.device.type == "cuda"
    length, steps = (2048 if on_gpu else 64), 7
    model = shape.base(check)
    shape.watch_memory(check)
    model.set_attn_implementation("sdpa")
    ends: list[tuple[float, int]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            check.wait()
            ends.append((time.perf_counter(), 4 * length))

    ids = [list(row.input_ids) for row in shape.rows(check, [length] * 4 * steps)]
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=4,
            bf16=on_gpu, use_cpu=not on_gpu, gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False}, use_liger_kernel=kernels,
            optim="adamw_torch_fused", max_length=length, logging_steps=100, report_to=[],
            save_strategy="no", dataset_kwargs={"skip_prepare_dataset": True}, disable_tqdm=True,
        )  # fmt: skip
        peft = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            model, args=args, train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
            processing_class=tiny_tokenizer(pad=True), peft_config=peft, callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    name = f"TRL{' + Liger' if kernels else ''}, lora 4x2048 checkpointed"
    shape.say_speed(check, name, ends)


def rollouts(check: Check) -> None:
    """Answers drawn token by token: milliseconds a step of the whole batch."""
    from llmft.api import SamplingParams
    from llmft.modeling import token_reader
    from llmft.modeling.decoding import decode

    model = shape.attach(shape.base(check), "lora").eval()
    end = model.config.vocab_size - 1
    replays = token_reader.replays
    on_gpu = check.device.type == "cuda"
    lengths = (40, 72) if on_gpu else (2, 4)
    for batch, replayed in ((16, True), (64, True), (16, False))[: None if on_gpu else 1]:
        token_reader.replays = replays if replayed else lambda _: False
        prompts = [[(i * 3 + j) % 500 + 1 for j in range(128)] for i in range(batch)]
        took = []
        for new in (lengths[0], *lengths):  # kernels are chosen at the first
            check.wait()
            begun = time.perf_counter()
            with torch.autocast(check.device.type, torch.bfloat16):
                decode(model, prompts, SamplingParams(new, stop_token_ids=(end,)), batch_size=batch)
            check.wait()
            took.append(time.perf_counter() - begun)
        del took[0]
        step = (took[1] - took[0]) / (lengths[1] - lengths[0])
        first = took[0] - lengths[0] * step
        check.say(
            rollout=batch, replayed=replayed, ms_a_token=round(1e3 * step, 1),
            tokens_per_s=round(batch / step), ms_before=round(1e3 * first),
        )  # fmt: skip
    token_reader.replays = replays


GRPO = """recipe: 1
name: grpo
output_dir: {folder}/out
model: {{path: "{folder}/model", dtype: bfloat16}}
stages:
  - name: grpo
    adapter: {{method: lora, r: 16}}
    alignment:
      {{method: grpo, rewards: [{{method: length, target: 200}}], num_generations: 8,
        max_completion_length: {length}, temperature: 1.0}}
    data:
      {{method: prompts, path: "embedded:prompts", columns: {{answers: aliases}}, limit: 64}}
    train: {{max_steps: {steps}, per_device_train_batch_size: {batch}, bf16: true}}
trackers: [{{method: jsonl}}]
"""


def grpo(check: Check) -> None:
    """GRPO by a recipe, on Llama 3.2 1B's layers: seconds of a step, with replays and without."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmft.engine.session import run_recipe
    from llmft.modeling import token_reader
    from llmft.modeling.tiny_models import tiny_tokenizer
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry

    on_gpu = check.device.type == "cuda"
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
             "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64}  # fmt: skip
    replays = token_reader.replays
    length, steps, batch = (256, 2, 16) if on_gpu else (4, 1, 1)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tiny_tokenizer(pad=True)
        config = LlamaConfig(
            **(sizes if on_gpu else shape.TINY | {"vocab_size": None}) | {"vocab_size": 512},
            tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        with torch.device(check.device):
            LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(f"{folder}/model")
        tokenizer.save_pretrained(f"{folder}/model")
        file = Path(folder, "recipe.yaml")
        file.write_text(GRPO.format(folder=folder, length=length, steps=steps, batch=batch))
        for replayed in (True, False) if on_gpu else (True,):
            token_reader.replays = replays if replayed else lambda _: False
            try:
                summary = run_recipe(load_recipe(file, Registry.discover()))
            finally:
                token_reader.replays = replays
            took = float(summary.stages["grpo"].metrics["train_seconds"]) / steps
            check.say(grpo=f"{8 * batch} answers of {length} tokens", replayed=replayed,
                      seconds_a_step=round(took, 2))  # fmt: skip


def same_bits(check: Check) -> None:
    """Train three steps twice, as usual and with torch's deterministic algorithms."""

    def weights() -> torch.Tensor:
        torch.manual_seed(0)
        model = shape.attach(shape.base(check), "lora")
        lengths = [1024 if check.device.type == "cuda" else 32] * 4 * 3
        torch.manual_seed(0)
        shape.trained(check, model, shape.rows(check, lengths), 4, 3)
        kept = [p.detach().float().flatten().cpu() for p in model.parameters() if p.requires_grad]
        return torch.cat(kept)

    check.say(same_bits=bool(torch.equal(weights(), weights())))
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        check.say(same_bits_deterministic=bool(torch.equal(weights(), weights())))
    finally:
        torch.use_deterministic_algorithms(False)


def main() -> int:
    """Run the parts that are asked for; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--only", nargs="+", default=[], metavar="PART")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with tiny shapes")
    asked = parser.parse_args()
    if not asked.dry and not torch.cuda.is_available():
        parser.error("no GPU is here; --dry tries the parts on the CPU")
    asked.out.mkdir(parents=True, exist_ok=True)
    device = "cpu" if asked.dry else "cuda"
    check = Check(asked.out, device, asked.seconds, set(asked.only))
    few = 2 if asked.dry else None
    check.run("environment", 5, environment)
    check.run("attention", 5, correctness.attention)
    check.run("lora", 50, lora)
    check.run("others", 50, others)
    check.run("methods", 60, lambda check: correctness.methods(check, 90, few))
    check.run("trl", 40, trl)
    if not asked.dry:
        check.run("liger", 50, liger)
    check.run("rollouts", 25, rollouts)
    check.run("grpo", 40, grpo)
    check.run("profile", 25, profile)
    check.run("same bits", 30, same_bits)
    check.run("compile", 60, compiled)
    return int(check.failed)


if __name__ == "__main__":
    sys.exit(main())
