"""How far llama.cpp's types move a model's log-probabilities: the table of docs/after-training.md.

    python benchmarks/gguf_types.py model-f32.gguf stories.jsonl.gz    # needs llama-cpp-python

Each type is made of the F32 file by llama.cpp, and both read the same texts: the first 120 tokens
of the first 8 rows (--count). Compared are the log-probabilities of every token at every place, in
nats.
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from llmft.verifying.gguf_child import Runtime

TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
TEXTS, CHARACTERS, TOKENS = 8, 400, 120


def main() -> int:
    """Print a line for each type: the largest and the mean difference from the F32 file."""
    import llama_cpp

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="a GGUF file of type F32")
    parser.add_argument("texts", help="JSON lines with `text`, packed by gzip or not")
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--count", type=int, default=TEXTS, help="of the texts")
    asked = parser.parse_args()
    opened = gzip.open if asked.texts.endswith(".gz") else open
    with opened(asked.texts, "rt", encoding="utf-8") as file:
        texts = [json.loads(next(file))["text"][:CHARACTERS] for _ in range(asked.count)]
    plain = numbers_of(asked.file, texts)
    print(f"{len(plain)} tokens\n| type | largest | mean |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.types:
            made = str(Path(folder) / f"{name}.gguf")
            settings = llama_cpp.llama_model_quantize_default_params()
            settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
            paths = asked.file.encode(), made.encode()
            if llama_cpp.llama_model_quantize(*paths, ctypes.byref(settings)):
                raise SystemExit(f"llama.cpp made no {name} of '{asked.file}'")
            apart = abs(numbers_of(made, texts) - plain)
            print(f"| `{name}` | {apart.max():.4f} | {apart.mean():.4f} |", flush=True)
    return 0


def numbers_of(file: str, texts: list[str]) -> Any:
    """Return the log-probabilities that a GGUF file gives at each token of the texts, (N, V)."""
    import numpy as np

    runtime = Runtime(file, TOKENS + 136)
    read = [runtime.tokens(text, begin=True)[:TOKENS] for text in texts]
    found = [np.array(runtime.numbers(ids)[0]) for ids in read]
    runtime.llama.close()
    return np.concatenate(found)


if __name__ == "__main__":
    sys.exit(main())
