"""Nothing that came with a model hangs or fills the memory: templates, expressions, odd files."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from llmft.api import ChatRow, CompletionRow, Conversation, PreferenceRow, PromptRow
from llmft.api.errors import DataError, EnvironmentFault, TrustError
from llmft.api.settings import TrainSettings
from llmft.data import bounded_rendering, bounded_tokens
from llmft.data.encoding import Encoder
from llmft.data.pair_encoding import encode_pairs
from llmft.data.prompt_encoding import encode_prompts
from llmft.modeling.tiny_models import tiny_tokenizer
from llmft.system.bounded_child import BoundedChild, OutOfBounds, WorkFailed

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
    monkeypatch.setattr(bounded_rendering, "SECONDS", 1.0)
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
@pytest.mark.parametrize("harm", [LOOP, LARGE])
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


# --- the process -----------------------------------------------------------------------------


def work(question):
    kind, value = question
    match kind:
        case "echo":
            return value
        case "loop":
            while True:
                pass
        case "fill":
            return len("x" * value)
        case "raise":
            raise ValueError(value)
        case "files":
            return sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
        case "write":
            try:
                with open(value, "w") as file:
                    file.write("x")
            except OSError as error:
                return error.strerror
            return "written"
        case "pid":
            return os.getpid()


@pytest.fixture
def child():
    return BoundedChild(work, 0.5, 200)


def test_answers_come_back_in_step(child):
    for value in (1, "é\ud800", [1, [2.5, None]], {"a": (1, 2)}, "x" * 3_000_000, b"\0"):
        assert child.ask(("echo", value)) == value
    with pytest.raises(WorkFailed, match="no") as caught:
        child.ask(("raise", "no"))
    assert caught.value.kind == "ValueError"
    first = child.ask(("pid", None))
    with pytest.raises(OutOfBounds, match=r"did not end within 0\.5 seconds"):
        child.ask(("loop", None))
    assert not os.path.exists(f"/proc/{first}")
    with pytest.raises(OutOfBounds, match="more than 200 MB"):
        child.ask(("fill", 400_000_000))
    assert child.ask(("echo", 2)) == 2


def test_a_signal_between_question_and_answer_leaves_nothing_behind(child):
    def leave(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, leave)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            child.ask(("loop", None))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert child.ask(("echo", "after")) == "after"


def test_it_holds_no_lock_or_file_of_ours_and_writes_none(child, tmp_path):
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert len(child.ask(("files", None))) <= 5
    with open(tmp_path / "lock", "w") as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert child.ask(("write", str(tmp_path / "out"))) != "written"
    assert child.ask(("pid", None)) != os.getpid()


def test_it_ends_when_its_parent_is_killed(tmp_path):
    code = (
        "import os, sys, time\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from test_bounds import work\n"
        "from llmft.system.bounded_child import BoundedChild\n"
        "child = BoundedChild(work)\n"
        "print(child.ask(('pid', None)), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid, deadline = int(done.stdout), time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")


# --- expressions of a tokenizer --------------------------------------------------------------


def splitting_by(pattern: str):
    from tokenizers import Regex, pre_tokenizers

    tokenizer = tiny_tokenizer()
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return tokenizer


@pytest.mark.parametrize("pattern", ["(x+x+)+y", "(x|x|xx)*y", "x*x*x*x*x*y"])
def test_an_expression_that_backtracks_is_a_fault_that_names_the_row(pattern, capfd):
    encoder = Encoder(splitting_by(pattern), None)
    row = CompletionRow("x" * 4000 + "z y", "z", (), "rows.jsonl:1")
    with pytest.raises(EnvironmentFault, match=r"rows\.jsonl:1: the tokenizer") as caught:
        encoder.encode([row], TrainSettings())
    assert caught.value.faults[0].code == "E212"
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize("pattern", ["(x|y)+", " ?\\p{L}+", "(?i:a)b+c+"])
def test_ids_are_the_same_in_a_process(pattern):
    tokenizer = splitting_by(pattern)
    tokens = bounded_tokens.BoundedTokens(tokenizer)
    for text in ("", "a bC é漢🙂", "</s> a", "x" * 100):
        for options in ({}, {"add_special_tokens": False, "split_special_tokens": True}):
            assert tokens.ids(text, **options) == tokenizer(text, **options)["input_ids"]
    assert tokens._usual is False


def test_which_expressions_need_a_process():
    for pattern in ("a", r"\d", r"\p{N}{1,3}", r" ?\p{L}+", r"[^\r\n]+", "a|b+|c*d", r"[\]a-z]+"):
        assert bounded_tokens.is_plain(pattern), pattern
    for pattern in ("(a)", "a+b+", "a?a?a?aaa", "(?=a)", "a{1,200}", r"\1", "[", "a**", "a+?a*"):
        assert not bounded_tokens.is_plain(pattern), pattern
    assert bounded_tokens.is_plain("a?" * 50_000) is False


def test_an_unusual_expression_is_loaded_in_a_process_first(tmp_path, monkeypatch):
    def ask(self, question):
        raise OutOfBounds("took more than 1 MB")

    monkeypatch.setattr(bounded_tokens.BoundedChild, "ask", ask)
    for pattern, refused in (("a+", False), ("(a+)+", True)):
        splitting_by(pattern).save_pretrained(tmp_path)
        if not refused:
            bounded_tokens.check_tokenizer_file(tmp_path / "tokenizer.json")
            continue
        with pytest.raises(EnvironmentFault, match=r"tokenizer took more .* was loaded"):
            bounded_tokens.check_tokenizer_file(tmp_path / "tokenizer.json")


def test_an_expression_is_found_however_its_key_is_written():
    text = '{"\\u0052e\\u0067ex" : "(a+)+", "Regex":"b"}'
    assert list(bounded_tokens.patterns_in(text)) == ["(a+)+", "b"]
