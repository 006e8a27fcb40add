"""A GGUF file in llama.cpp, in a process of its own: `python -m llmft.verifying.gguf_child FILE`.

llama.cpp is native code that ends the process at what it does not expect. Questions come as lines
of JSON at stdin, each is answered by a line at stdout: {"tokenize": [[text, with BOS], ...]}, then
{"prompts": [ids], "max_new_tokens": n}, {"rows": [ids]}. The first line tells of the file.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

_KEYS = ("general.architecture", "general.file_type", "tokenizer.chat_template",
         "tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id")  # fmt: skip


class Runtime:
    """One file, loaded as llama.cpp's own programs load it. context: how many tokens it holds."""

    def __init__(self, file: str, context: int) -> None:
        import llama_cpp

        self.llama = llama_cpp.Llama(file, n_ctx=context, logits_all=True, verbose=False)
        self.vocab = self.llama._model.vocab
        self.is_end = llama_cpp.llama_vocab_is_eog
        kinds = {
            value: name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_")
            for name, value in vars(llama_cpp).items()
            if name.startswith("LLAMA_FTYPE_") and isinstance(value, int)
        }
        told = {key: str(self.llama.metadata.get(key, "")) for key in _KEYS}
        number = told["general.file_type"]
        self.facts = {
            "type": kinds.get(int(number), "") if number.isdecimal() else "",
            "architecture": told["general.architecture"],
            "template": told["tokenizer.chat_template"],
            "adds_bos": self.tokens("x", begin=True)[:1] == [self.llama.token_bos()],
            "bos": self.llama.token_bos(),
            "vocabulary": self.llama.n_vocab(),
            "version": llama_cpp.__version__,
        }

    def tokens(self, text: str, *, begin: bool) -> list[int]:
        """Return the ids of a text. begin: put before it what the file says, such as a BOS."""
        return [int(i) for i in self.llama.tokenize(text.encode(), add_bos=begin, special=True)]

    def answer(self, prompt: Sequence[int], most: int) -> list[int]:
        """Return the likeliest answer to a prompt, with the token that ends it."""
        self.llama.reset()
        self.llama.eval(list(prompt))
        found: list[int] = []
        while len(found) < most:
            found.append(int(self.llama.scores[self.llama.n_tokens - 1].argmax()))
            if self.is_end(self.vocab, found[-1]):
                break
            self.llama.eval(found[-1:])
        return found

    def numbers(self, row: Sequence[int]) -> tuple[list[float], list[int]]:
        """Return the log-probabilities of a row's tokens but the first, and the likeliest ones."""
        import numpy

        self.llama.reset()
        self.llama.eval(list(row))
        logits_TV = self.llama.scores[: len(row) - 1].astype(numpy.float64)
        top_T1 = logits_TV.max(-1, keepdims=True)
        sums_T = top_T1[:, 0] + numpy.log(numpy.exp(logits_TV - top_T1).sum(-1))
        own_T = logits_TV[numpy.arange(len(row) - 1), list(row[1:])]
        return (own_T - sums_T).tolist(), logits_TV.argmax(-1).tolist()

    def told(self, question: dict[str, Any]) -> Any:
        """Return the answer to a question."""
        if "tokenize" in question:
            return [self.tokens(text, begin=begin) for text, begin in question["tokenize"]]
        if "prompts" in question:
            return [self.answer(ids, question["max_new_tokens"]) for ids in question["prompts"]]
        return [self.numbers(row) for row in question["rows"]]


def main(file: str, context: str) -> int:
    """Answer questions until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # llama.cpp's own words are no answers
    runtime = Runtime(file, int(context))
    print(json.dumps(runtime.facts), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(runtime.told(json.loads(line))), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
