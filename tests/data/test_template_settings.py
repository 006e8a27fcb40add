"""What a recipe says of its chat template: the template itself, a file, another model, the day."""

from __future__ import annotations

import os

import pytest
from pydantic import ValidationError

from llmft.api.errors import EnvironmentFault
from llmft.api.model_settings import ModelSource
from llmft.modeling.base_model import BaseModel
from llmft.modeling.tiny_models import tiny_llama, tiny_model_folder, tiny_tokenizer

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}" + " " * 20_000


def source(**settings) -> ModelSource:
    return ModelSource(path="embedded:model", **settings)


def test_a_template_may_be_long_and_may_be_a_file(tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text("\ufeff" + TEMPLATE, "utf-8")
    for given in (TEMPLATE, str(file)):
        assert source(chat_template=given).chat_template == TEMPLATE
        assert BaseModel(source(chat_template=given)).tokenizer.chat_template == TEMPLATE


@pytest.mark.parametrize(("text", "said"), [
    ("nowhere.jinja", "there is no such file"), ("write it so", "no Jinja template"),
])  # fmt: skip
def test_what_is_neither_is_refused(text, said):
    with pytest.raises(ValidationError, match=said):
        source(chat_template=text)


def test_a_file_without_a_template_is_refused(tmp_path):
    (tmp_path / "chat.jinja").write_text("nothing", "utf-8")
    with pytest.raises(ValidationError, match="holds no Jinja template"):
        source(chat_template=str(tmp_path / "chat.jinja"))


def test_another_models_template_is_taken_or_missed(tmp_path):
    made = tiny_model_folder(tmp_path / "one", tiny_llama(), tiny_tokenizer(chat=True))
    found = BaseModel(source(chat_template=str(made))).tokenizer.chat_template
    assert found == tiny_tokenizer(chat=True).chat_template
    bare = tiny_model_folder(tmp_path / "two", tiny_llama(), tiny_tokenizer())
    with pytest.raises(EnvironmentFault, match="has no chat template"):
        _ = BaseModel(source(chat_template=str(bare))).tokenizer


def test_a_recipes_stops_are_beside_the_models_own():
    form = BaseModel(source(stop=["Q"], chat_template_date="2031-02-03")).chat_format
    own = BaseModel(source()).chat_format
    assert own.stop_ids == form.stop_ids
    assert own.stop_ids
    assert form.stop == ("Q",)
    assert form.date.isoformat() == "2031-02-03"
    with pytest.raises(ValidationError, match="out of range"):
        source(chat_template_date="2031-02-31")


def test_an_endless_file_is_not_read_to_its_end(tmp_path):
    (tmp_path / "t.jinja").touch()
    os.truncate(tmp_path / "t.jinja", 2**40)
    with pytest.raises(ValidationError, match="holds no Jinja template"):
        ModelSource(path="m", chat_template=str(tmp_path / "t.jinja"))
