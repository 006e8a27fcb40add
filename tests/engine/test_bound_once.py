"""A recipe is bound once: how often a run asks the registry, and reads a model's folder."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from llmft.cli.main import main
from llmft.registry.registry import Registry


@pytest.fixture
def counted(monkeypatch):
    """What was asked for while a command ran: each method, each model's config and its folder."""
    from transformers import AutoConfig

    from llmft.modeling import base_model

    asked: Counter[tuple[str, str]] = Counter()

    def counting(owner, name: str, label, call) -> None:
        original = getattr(owner, name)

        def wrapped(*args, **named):
            asked[label(*args, **named)] += 1
            return call(original, *args, **named)

        monkeypatch.setattr(owner, name, wrapped)

    def plain(original, *args, **named):
        return original(*args, **named)

    counting(Registry, "method", lambda self, kind, name: (kind, name), plain)
    counting(base_model, "check_folder", lambda folder: ("folder", str(folder)), plain)
    monkeypatch.setattr(AutoConfig, "from_pretrained", _counted_config(asked, AutoConfig))
    return asked


def _counted_config(asked: Counter[tuple[str, str]], cls: type) -> object:
    original = cls.from_pretrained

    def read(path, **options):
        caller = sys._getframe(1).f_globals["__name__"]
        if caller.startswith("llmft"):  # transformers' tokenizers read it for themselves
            asked["config", str(path)] += 1
        return original(path, **options)

    return read


@pytest.mark.parametrize(
    ("command", "methods", "models"),
    [
        (["run", "quickstart", "--set", "stages.sft.train.max_steps=2",
          "--set", "stages.sft.evaluate.limit=2"], 5, 1),
        (["run", "ppo_quick", "--smoke"], 9, 2),
    ],
    ids=["quickstart", "a smoke run of three stages"],
)  # fmt: skip
def test_each_method_and_each_model_is_looked_up_once(
    counted, tmp_path, capsys, command, methods, models
):
    assert main([*command, "--quiet", "--output-dir", str(tmp_path)]) == 0, capsys.readouterr().err
    named = {key: times for key, times in counted.items() if key[0] not in ("config", "folder")}
    assert len(named) >= methods
    assert set(named.values()) == {1}, named
    for what in ("config", "folder"):
        found = {key: times for key, times in counted.items() if key[0] == what}
        assert len(found) <= models, found
        assert set(found.values()) <= {1}, found
