"""Chat templates of others are rendered in bounded time and memory."""

from __future__ import annotations

import time

import pytest

from llmft.api import ChatRow, CompletionRow, Conversation, PreferenceRow, PromptRow
from llmft.api.errors import DataError, TrustError
from llmft.api.train_settings import TrainSettings
from llmft.data import bounded_rendering
from llmft.data.encoding import Encoder
from llmft.data.pair_encoding import encode_pairs
from llmft.data.prompt_encoding import encode_prompts
from llmft.modeling.tiny_models import tiny_tokenizer
from tests.extended import extended

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
LARGE = (
    "{% set n = namespace(x='a' * 99) %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}{{ n.x }}"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Bounds that are reached in a test; a renderer of its own for each."""
    monkeypatch.setattr(bounded_rendering, "SECONDS", 0.5)
    bounded_rendering._renderer.cache_clear()
    yield
    bounded_rendering._renderer.cache_clear()


def with_template(text: str):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = text
    return tokenizer


def use(encoder: Encoder, when: str) -> None:
    """Render in the way that a condition of a template asks for."""
    if when == "tools":
        tool = {"type": "function", "function": {"name": "f"}}
        encoder.render(Conversation([USER], [tool]), answer_next=False)
    elif "seventh" in when:
        turns = [{"role": "user", "content": c} for c in ("first", "second", "seventh")]
        encoder.encode([CompletionRow((t,), "a", (), "f") for t in turns], TrainSettings())
    else:
        encoder.encode([CompletionRow((USER,), "ho")], TrainSettings())


@pytest.mark.parametrize("when", [
    "add_generation_prompt", "messages|length == 1", "messages|length > 1", "tools",
    "messages[0].content == 'seventh'", "eos_token is defined",
])  # fmt: skip
@pytest.mark.parametrize("harm", extended([LOOP, LARGE], [LOOP]))
def test_every_way_a_template_is_rendered_is_bounded(when, harm):
    template = f"{{% if {when} %}}{harm}{{% endif %}}{PLAIN}"
    tokenizer = with_template(template)
    encoder = Encoder(tokenizer, None)
    with pytest.raises(TrustError, match="E604"):
        use(encoder, when)
    # The next one is rendered as if nothing had been.
    assert Encoder(with_template(PLAIN), None).render([USER], answer_next=False) == "user: hi\n"


def test_a_row_that_the_template_runs_away_on_is_named():
    template = f"{{% if messages[0].content == 'x' %}}{LOOP}{{% endif %}}{PLAIN}"
    turn = {"role": "user", "content": "x"}
    encoder = Encoder(with_template(template), None)
    for encode in (
        lambda: encoder.encode([ChatRow((turn, ANSWER), "f:7")], TrainSettings()),
        lambda: encode_pairs(
            encoder, [PreferenceRow((turn,), "a", "b", None, "f:7")], TrainSettings()
        ),
        lambda: encode_prompts(encoder, [PromptRow((turn,), (), "f:7")], TrainSettings(), 4),
    ):
        with pytest.raises(TrustError, match="f:7: the chat template did not end"):
            encode()


@pytest.mark.parametrize("template", [
    PLAIN,
    "{{ bos_token }}{% for m in messages %}{{ loop.index }}{{ m.content | trim }}{% endfor %}",
    "{% for m in messages %}{{ m | tojson }}{% endfor %}{% if add_generation_prompt %}>{% endif %}",
    "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{{ messages[-1].content }}{{ extra }}",
])  # fmt: skip
@pytest.mark.parametrize("ask", [True, False])
def test_the_text_is_what_the_tokenizer_itself_would_write(template, ask):
    tokenizer = with_template(template)
    talk = [
        {"role": "system", "content": " é漢🙂 "},
        {**USER, "name": None, "parts": [{"type": "text", "text": "x"}]},
        {
            **ANSWER,
            "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1.5, "b": [True]}}}],
        },
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    for given in (None, tools):
        options = {"add_generation_prompt": ask, "extra": "more"}
        wanted = tokenizer.apply_chat_template(talk, tools=given, tokenize=False, **options)
        asked = Conversation(talk, given or (), {"extra": "more"})
        assert Encoder(tokenizer, None).render(asked, answer_next=ask) == wanted


def test_what_a_template_refuses_is_told_in_its_words():
    with pytest.raises(DataError, match="roles must alternate"):
        use(Encoder(with_template("{{ raise_exception('roles must alternate') }}"), None), "")
    with pytest.raises(DataError, match="division by zero"):
        use(Encoder(with_template("{{ 1 / 0 }}"), None), "")


def test_a_tokenizer_that_writes_conversations_by_code_of_its_own_is_refused():
    class Own(type(with_template(PLAIN))):
        def apply_chat_template(self, *args, **kwargs):
            return "by code"

    tokenizer = with_template(PLAIN)
    tokenizer.__class__ = Own
    with pytest.raises(DataError, match="'Own' writes conversations by code of its own"):
        use(Encoder(tokenizer, None), "")


def test_many_conversations_take_little_time_more_than_without_a_process():
    encoder = Encoder(with_template(PLAIN), None)
    encoder.render([USER, ANSWER], answer_next=False)
    began = time.process_time()
    for _ in range(500):
        encoder.render([USER, ANSWER], answer_next=False)
    assert time.process_time() - began < 2.0
