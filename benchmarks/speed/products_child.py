"""The matrix products that no trainer can do without, on a task's rows and a model of its shape.

    python products_child.py FOLDER OUT

The frozen layers forward and the gradients of their inputs, over the tokens of each batch without
padding, and the output layer on the tokens that are learnt, forward and back; DPO's reference
forward once more. A prompt with two answers is read once; the last layer goes on with the tokens
that are learnt, and what nobody needs is no gradient: that of the first layer's input. Weights
differ from layer to layer, as a model's do, and what comes out goes into the same memory each time.
LoRA's own products, attention, norms and the optimiser are left out, so that the time is a limit
which training can come near, and not reach. They are in bfloat16 where the task computes in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workload import Shape, Task, read_task

KEYS_AND_VALUES = 1, 2
"""The matrices of a layer that are multiplied with every token in the last layer too."""


def main(folder: Path, out: Path) -> None:
    """Multiply, and write what the clock says."""
    import torch
    from clock import Clock

    task = read_task(folder)
    shape, batches = task.shape, list(counted(task, folder / "rows.jsonl"))
    draw = torch.Generator().manual_seed(0)

    dtype = torch.bfloat16 if task.bf16 else torch.float32

    def drawn(rows: int, columns: int) -> Any:
        return torch.empty(rows, columns).normal_(generator=draw).to(dtype)

    layers = [[drawn(*size) for size in sizes(shape)] for _ in range(shape.layers)]
    head = [] if task.alignment == "reward" else [drawn(shape.vocabulary, shape.hidden)]
    widest = max(max(weight.shape) for weight in [*layers[0], *head])
    most = max(n for n, _ in batches)
    given, made = drawn(most, widest), torch.empty(most * widest, dtype=dtype)

    def product(rows: int, weight: Any) -> None:
        into = made[: rows * weight.shape[1]].view(rows, -1)
        torch.mm(given[:rows, : weight.shape[0]], weight, out=into)

    clock = Clock()
    clock.start()
    for n, learnt in batches:
        forward = [
            (n if layer < shape.layers - 1 or index in KEYS_AND_VALUES else learnt, weight)
            for layer, weights in enumerate(layers)
            for index, weight in enumerate(weights)
        ] + [(learnt, weight) for weight in head]
        for _ in range(2 if task.alignment == "dpo" else 1):
            for rows, weight in forward:
                product(rows, weight.t())
        for rows, weight in reversed(forward[3:]):
            product(rows, weight)
    clock.stop(out)


def sizes(shape: Shape) -> list[tuple[int, int]]:
    """Return what each of a Llama's seven matrices gives and takes, from queries to `down`."""
    of_keys = shape.hidden // shape.heads * shape.kv_heads
    hidden, wide = shape.hidden, shape.intermediate
    attention = [(hidden, hidden), (of_keys, hidden), (of_keys, hidden), (hidden, hidden)]
    return [*attention, (wide, hidden), (wide, hidden), (hidden, wide)]


def counted(task: Task, file: Path) -> Iterator[tuple[int, int]]:
    """Return for each batch of the training its tokens, and those of them that are learnt."""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    rows = rows[: task.steps * task.batch * task.accumulation]
    for start in range(0, len(rows), task.batch):
        batch = rows[start : start + task.batch]
        prompts = sum(len(row["prompt"]) for row in batch)
        answers = sum(
            len(text) + 1 for row in batch for key, text in row.items() if key != "prompt"
        )
        yield prompts + answers, prompts + answers if task.alignment == "orpo" else answers


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
