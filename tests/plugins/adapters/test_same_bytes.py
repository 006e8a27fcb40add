"""An adapter's files are the same, byte for byte, whatever order a process has its sets in."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

BLOCKS = {
    "names": {"method": "lora", "r": 2, "target_modules": ["v_proj", "q_proj", "down_proj"]},
    "all-linear": {"method": "lora", "r": 2},
    "exclude": {"method": "lora", "r": 2, "exclude_modules": ["k_proj", "gate_proj", "o_proj"]},
    "ends": {"method": "lora", "r": 2, "target_modules": ["v_proj", "lm_head", "embed_tokens"]},
    "whole": {"method": "lora", "r": 2, "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    "dora": {"method": "dora", "r": 2, "rank_pattern": {"*.1.self_attn.*": 3, "down_proj": 4}},
    "ia3": {"method": "ia3"},
    "ia3 by name": {"method": "ia3", "target_modules": ["q_proj", "up_proj", "down_proj"],
                    "feedforward_modules": ["up_proj", "down_proj"]},
    "vera": {"method": "vera", "r": 4, "exclude_modules": ["k_proj", "v_proj"]},
}  # fmt: skip
SAVE = """
import hashlib, json, sys, tempfile
from pathlib import Path
from llmft.registry.registry import Registry
from llmft.testing import measures, tiny_llama

registry, found = Registry.discover(), {}
for name, block in json.loads(sys.argv[1]).items():
    method = registry.method("adapter", block["method"])
    adapter = method(method.Config(**block))
    measures.seed()
    with tempfile.TemporaryDirectory() as folder:
        adapter.save(adapter.attach(tiny_llama()), Path(folder))
        found[name] = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(Path(folder).iterdir()) if path.is_file()
        }
print(json.dumps(found))
"""


@pytest.mark.extended
def test_an_adapters_files_have_the_same_bytes_under_every_hash_seed():
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SAVE, json.dumps(BLOCKS)],
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for seed in ("0", "1", "4242")
    ]  # fmt: skip
    ended = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ended[0][1]
    first, *others = (json.loads(out.splitlines()[-1]) for out, _ in ended)
    assert list(first) == list(BLOCKS)
    assert all("adapter_config.json" in files for files in first.values())
    for name, files in first.items():
        for other in others:
            assert other[name] == files, name
