"""`llmft serve` as the judge of `llmft evaluate --judge`."""

from __future__ import annotations

import json
import threading

from llmft.endpoint.served import asked_runs, load
from llmft.endpoint.server import Endpoint
from llmft.engine.session import run_recipe
from llmft.inference.judging import judge_pairs
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.system.api_client import ApiClient


def test_the_embedded_model_served_by_llmft_judges(rows_file, tmp_path, monkeypatch):
    """It is no judge, and so its replies have no mark; but each is asked for, and comes."""
    monkeypatch.setenv("LLMFT_CACHE", "off")
    recipe = {
        "recipe": 1, "name": "wise", "model": {"path": "embedded:model"},
        "output_dir": str(tmp_path / "runs"), "trackers": [],
        "stages": [{"name": "sft", "adapter": {"method": "lora", "r": 2},
                    "alignment": {"method": "sft"},
                    "data": {"method": "jsonl", "path": str(rows_file)},
                    "train": {"max_steps": 1, "per_device_train_batch_size": 1,
                              "lr_scheduler_type": "constant"}}],
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    run = run_recipe(load_recipe(path, Registry.discover())).folder
    server = Endpoint(
        load(asked_runs([str(run)]), base=True), host="127.0.0.1", port=0, key=None,
        log=lambda line: None,
    )  # fmt: skip
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        client = ApiClient.at(f"http://127.0.0.1:{server.server_port}")
        found = judge_pairs([("What is two and two?", "four", "five")], client, "base")
    finally:
        server.shutdown()
        server.server_close()
    assert found.asked == 2
    assert found.pairs[0].outcome == "tie"
    assert found.unreadable == 2
    assert all(found.pairs[0].replies)
