"""Attention of 16 bits on a CPU, forward and back: torch's own in two types, and llmft's.

    python benchmarks/half_attention.py [--heads 9 3] [--width 64] [--rounds 20]

Prints the least milliseconds of CPU time of one causal row, by its tokens. Heads and width are
SmolLM2-135M's unless others are named.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from llmft.modeling import half_attention

LENGTHS = (36, 67, 140, 355, 500, 1000)


def main() -> None:
    """Time what was asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", nargs=2, type=int, default=(9, 3), metavar=("QUERIES", "KEYS"))
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    contestants = {
        "torch, float32": (F.scaled_dot_product_attention, torch.float32),
        "torch, bfloat16": (F.scaled_dot_product_attention, torch.bfloat16),
        "llmft, bfloat16": (half_attention.attend, torch.bfloat16),
    }
    print("| tokens |" + "".join(f" {name}: forward, back |" for name in contestants))
    print("|---|" + "---|" * len(contestants))
    for length in LENGTHS:
        cells = [
            timed(function, dtype, length, asked.heads, asked.width, asked.rounds)
            for function, dtype in contestants.values()
        ]
        print(f"| {length} |" + "".join(f" {f:.2f}, {b:.2f} |" for f, b in cells), flush=True)


def timed(
    attend: Callable[..., Any],
    dtype: torch.dtype,
    length: int,
    heads: tuple[int, int],
    width: int,
    rounds: int,
) -> tuple[float, float]:
    """Return the least milliseconds of a row forward, and back."""
    torch.manual_seed(0)
    queries, keys = heads
    tensors = [
        torch.randn(1, n, length, width, dtype=dtype, requires_grad=True)
        for n in (queries, keys, keys)
    ]
    grad = torch.randn(1, queries, length, width, dtype=dtype)
    forward, back = [], []
    for _ in range(rounds):
        start = time.process_time()
        out = attend(*tensors, is_causal=True, enable_gqa=queries != keys)
        middle = time.process_time()
        torch.autograd.grad(out, tensors, grad)
        forward.append(middle - start)
        back.append(time.process_time() - middle)
    return min(forward) * 1000, min(back) * 1000


if __name__ == "__main__":
    main()
