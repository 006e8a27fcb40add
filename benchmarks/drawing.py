"""The time of greedy answers on a CPU: llmft's reader beside transformers' `generate`.

    python benchmarks/drawing.py --page

A Llama of SmolLM2-135M's shape with random weights, prompts of 60 tokens of which no two are the
same, answers of `--tokens` tokens; one thread. CPU milliseconds per token of all rows, the least of
`--rounds` rounds, in turns. The answers are compared: in float32 they are the same.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "speed"))
ROWS = 1, 8, 32


def main() -> None:
    """Draw answers by both, and print a table."""
    import torch
    from page import PAGE, machine  # of benchmarks/speed

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--page", action="store_true", help="fill the table of the docs")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| base | rows | transformers, ms | llmft, ms | times as fast |",
        "|---|---|---|---|---|",
    ]
    for dtype in (torch.float32, torch.bfloat16):
        model = made(dtype)
        for rows in ROWS:
            spent = timed(model, rows, asked.tokens, asked.rounds)
            theirs, ours = (1000 * seconds / asked.tokens for seconds in spent)
            name = str(dtype).removeprefix("torch.")
            lines.append(f"| {name} | {rows} | {theirs:.0f} | {ours:.0f} | {theirs / ours:.2f} |")
            print(lines[-1], flush=True)
    if asked.page:
        begin, end = "<!-- drawing: begin -->", "<!-- drawing: end -->"
        before, _, rest = PAGE.read_text("utf-8").partition(begin)
        _, _, after = rest.partition(end)
        told = f"Answers of {asked.tokens} tokens, the least of {asked.rounds} rounds. {machine()}"
        table = "\n".join([begin, "", *lines, "", told, "", end])
        PAGE.write_text(before + table + after, "utf-8")


def made(dtype: Any) -> Any:
    """Return the model, as llmft loads it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from workload import SHAPE_135M

    from llmft.modeling.one_step import take_over

    shape = SHAPE_135M
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype).requires_grad_(False).eval()
    take_over(model)
    return model


def timed(model: Any, rows: int, tokens: int, rounds: int) -> tuple[float, float]:
    """Return the CPU seconds of transformers and of llmft; raise where float32's answers differ."""
    import torch
    from transformers import GenerationConfig

    from llmft.api import SamplingParams
    from llmft.modeling.decoding import decode

    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 49_000, (rows, 60), generator=draw)
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=0)

    def theirs() -> list[list[int]]:
        mask = torch.ones_like(ids)
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        found: list[list[int]] = out[:, 60:].tolist()
        return found

    def ours() -> list[list[int]]:
        asked = SamplingParams(tokens, temperature=0.0)
        return [answer.ids for answer in decode(model, ids.tolist(), asked, batch_size=rows)]

    spent: dict[Callable[[], list[list[int]]], list[float]] = {theirs: [], ours: []}
    for _ in range(rounds):
        found = []
        for contestant, seconds in spent.items():
            began = time.process_time()
            found.append(contestant())
            seconds.append(time.process_time() - began)
        if model.dtype == torch.float32 and found[0] != found[1]:
            raise SystemExit(f"with {rows} rows the answers differ")
    return min(spent[theirs]), min(spent[ours])


if __name__ == "__main__":
    main()
