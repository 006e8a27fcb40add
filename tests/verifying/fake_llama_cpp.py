"""In place of the package llama_cpp: a file holds JSON after GGUF's mark, and names a model folder.

What the child asks of llama-cpp-python is answered by plain transformers. It is installed for a
test as a module `llama_cpp` on PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import sys

__version__ = "0.0.test"
LLAMA_FTYPE_ALL_F32, LLAMA_FTYPE_MOSTLY_F16, LLAMA_FTYPE_MOSTLY_Q4_K_M = 0, 1, 15


def llama_vocab_is_eog(vocab, token):
    return token in vocab


class Llama:
    def __init__(self, path, *, n_ctx, logits_all, verbose):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        assert logits_all
        assert not verbose
        print("llama.cpp's own words")  # on stdout, as native code writes there
        with open(path, encoding="utf-8") as file:
            self.told = json.loads(file.read()[4:])
        if self.told.get("dies"):
            sys.stdout.flush()
            os.abort()
        folder = self.told["folder"]
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.words = AutoTokenizer.from_pretrained(folder)
        self.torch, self.n_ctx = torch, n_ctx
        if noise := self.told.get("noise"):
            torch.manual_seed(0)
            for weight in self.model.parameters():
                weight.data += noise * torch.randn_like(weight)
        ends = self.model.generation_config.eos_token_id
        self.vocab = ends if isinstance(ends, list) else [ends]
        self._model = self
        self.metadata = {
            "general.architecture": "llama", "general.file_type": str(self.told["type"]),
            "tokenizer.chat_template": self.told.get("template", self.words.chat_template or ""),
        }  # fmt: skip
        self.reset()

    def n_vocab(self):
        return self.model.config.vocab_size

    def token_bos(self):
        return 7

    def tokenize(self, text, add_bos, special):
        assert special
        begin = [7] if add_bos and self.told.get("adds_bos") else []
        return begin + self.words(text.decode(), add_special_tokens=False)["input_ids"]

    def reset(self):
        self.ids, self.n_tokens = [], 0

    def eval(self, tokens):
        self.ids += tokens
        self.n_tokens = len(self.ids)
        assert self.n_tokens <= self.n_ctx
        with self.torch.no_grad():
            self.scores = self.model(self.torch.tensor([self.ids])).logits[0].float().numpy()
