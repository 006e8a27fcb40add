"""Pretraining: `python -m llmft.assets.pretrain` makes the embedded model anew.

Tokenizer and weights are trained from nothing on `llmft.assets.corpus`, on the CPU.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from llmft.assets.corpus import one_round
from llmft.assets.facts import load_facts
from llmft.assets.model_files import card, measure, save_model
from llmft.assets.tokenization import END, train_tokenizer

ROW_TOKENS = 128
BATCH_ROWS = 16
PEAK_LEARNING_RATE = 2e-3
WARMUP_STEPS = 200


def build_model(vocab_size: int) -> LlamaForCausalLM:
    """Return the freshly initialised network (2.6 million parameters)."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=5,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=512,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=1,
        )
    )


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[torch.Tensor]:
    """Yield packed token batches without end, int64 (BATCH_ROWS, ROW_TOKENS)."""
    rng = random.Random(seed)
    facts = load_facts()
    need = BATCH_ROWS * ROW_TOKENS
    stream: list[int] = []
    while True:
        documents = [document + END for document in one_round(facts, rng)]
        for encoding in tokenizer.encode_batch(documents):
            stream.extend(encoding.ids)
        while len(stream) >= need:
            yield torch.tensor(stream[:need]).view(BATCH_ROWS, ROW_TOKENS)
            del stream[:need]


def learning_rate(step: int, steps: int) -> float:
    """Return the rate at a step: a linear warmup, then a cosine down to a twentieth."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return PEAK_LEARNING_RATE * warm * (0.05 + 0.95 * cosine)


def train(model: LlamaForCausalLM, tokenizer: Tokenizer, seed: int, steps: int) -> float:
    """Train the model in place and return its mean loss, in nats, over the last 100 steps."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    losses: list[float] = []
    began = time.monotonic()
    for step, ids_BT in zip(range(steps), batches(tokenizer, seed), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = model(input_ids=ids_BT, labels=ids_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            pace = (time.monotonic() - began) / (step + 1)
            print(
                f"step {step + 1}/{steps}  loss {sum(losses[-100:]) / 100:.3f}  "
                f"{ids_BT.numel() / pace:.0f} tokens/s  {pace * (steps - step - 1):.0f} s left",
                flush=True,
            )
    last = losses[-100:]
    return sum(last) / len(last)


def main() -> None:
    """Pretrain the embedded model and save it with its card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    chosen = parser.parse_args()

    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    tokenizer = train_tokenizer(load_facts())
    model = build_model(tokenizer.get_vocab_size())
    loss = train(model, tokenizer, chosen.seed, chosen.steps)
    save_model(model, tokenizer, chosen.out)
    accuracy = measure(chosen.out)
    command = f"python -m llmft.assets.pretrain --seed {chosen.seed} --steps {chosen.steps}"
    seen = chosen.steps * BATCH_ROWS * ROW_TOKENS
    text = card(model, chosen.seed, command, seen, loss, accuracy)
    (chosen.out / "README.md").write_text(text, encoding="utf-8")
    print(f"loss {loss:.3f}, statement completion {accuracy:.2%}, saved to {chosen.out}")


if __name__ == "__main__":
    main()
