"""What a key is told that its block does not have, asked of blocks made for the purpose."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from llmft.recipes.unknown import answer_unknown


class Top(BaseModel):
    name: str = ""


class Sft(BaseModel):
    method: str = ""
    packing: bool = False


class Dpo(BaseModel):
    method: str = ""
    beta: float = 0.1


class Train(BaseModel):
    max_steps: int = 1
    packing: bool = False


class StageBlock(BaseModel):
    train: Train


MODELS = {
    (): Top,
    ("stages", 0): StageBlock,
    ("stages", 0, "alignment"): Sft,
    ("stages", 1): StageBlock,
    ("stages", 1, "alignment"): Dpo,
    ("stages", 1, "train"): Train,
}


@pytest.mark.parametrize(
    ("key", "block", "fix"),
    [
        ("packing", ("stages", 1, "alignment"), "it belongs under stages[1].train"),
        ("packing", ("stages", 0), "it belongs under stages[0].alignment"),
        ("packing", (), "it belongs under alignment in a stage or under train in a stage"),
        ("beta", ("stages", 1), "it belongs under stages[1].alignment"),
        # No block of this stage has it; that of another one is no home for it.
        ("beta", ("stages", 0, "alignment"), "the keys here are method, packing"),
        # Every block that is one of a method has this key, so it says nothing.
        ("method", (), "the keys here are name"),
        ("name", ("stages", 0, "alignment"), "it belongs at the top of the recipe"),
        # Only blocks that the recipe has are named, where it has stages.
        ("eval_steps", ("stages", 0), "the keys here are train"),
        ("packing: true", ("stages", 0, "alignment"), "write a space after the colon"),
        ("max-steps", ("stages", 1, "train"), "write 'max_steps'"),
        ("packin", ("stages", 1, "train"), "did you mean 'packing'?"),
    ],
)
def test_a_key_is_sent_where_it_belongs(key, block, fix):
    code, what, told = answer_unknown((*block, key), MODELS)
    assert (code, what) == ("E020", f"unknown key '{key}'")
    assert told == fix


def test_a_file_without_stages_is_told_of_the_blocks_of_one():
    assert answer_unknown(("max_steps",), {(): Top})[2] == "it belongs under train in a stage"
    assert answer_unknown(("alignment",), {(): Top})[2] == "it belongs in a stage"


@pytest.mark.parametrize("key", ["n\u0430me", "na\u200bme", "na\x07me", "na\x7fme"])
def test_a_key_with_a_letter_that_is_none_is_told_the_plain_one(key):
    code, what, fix = answer_unknown((key,), {(): Top})
    assert code == "E027"
    assert "U+" in what
    assert fix == "type 'name' again, in plain letters"
