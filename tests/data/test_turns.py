"""What is trained on in a conversation: real templates against expected spans, and each rule."""

from __future__ import annotations

import dataclasses
import datetime
import gzip
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from llmft.data.rendering import ChatTemplate, TemplateRefusal
from llmft.data.stops import Stops
from llmft.data.traced import runs_of
from llmft.data.turns import TurnFault, TurnFinder

LEAST = {"wholes": 454, "rows": 936}


@pytest.fixture(scope="module")
def cases():
    path = os.environ.get("LLMFT_MASK_CASES")
    if not path:
        pytest.skip("LLMFT_MASK_CASES does not name a file of cases")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def sources():
    trl = pytest.importorskip("trl")
    folder = Path(trl.__file__).parent / "chat_templates"
    return {file.stem: file.read_text("utf-8") for file in folder.glob("*.jinja")}


def finder_of(case, sources) -> TurnFinder:
    """Return a case's finder; its stops are a pattern of literal words."""
    words = [] if case["stop"] == "(?!)" else re.split(r"(?<!\\)\|", case["stop"])
    stops = Stops(
        tuple(re.sub(r"\\(.)", r"\1", word) for word in words), (case["kwargs"]["eos_token"],)
    )
    now = datetime.date.fromisoformat(case["now"])
    template = ChatTemplate(sources[case["template"]], case["kwargs"], now)
    return TurnFinder(template, case["messages"], case["tools"], stops)


def test_no_case_is_trained_on_wrongly_and_no_fewer_than_before(cases, sources, capsys):
    table, wrong = Counter(), []
    for case in cases:
        finder = finder_of(case, sources)
        turns = [n for n, m in enumerate(case["messages"]) if m["role"] == "assistant"]
        for kind, said in (*_whole(case, finder, turns), *_rows(case, finder)):
            table[kind] += 1
            if said:
                wrong.append(f"{case['template']} {case['shape']}: {said}")
    with capsys.disabled():
        print(f"\n{len(cases)} cases: " + ", ".join(f"{n} {k}" for k, n in sorted(table.items())))
    assert not wrong, "\n".join(wrong[:20])
    assert table["wholes right"] >= LEAST["wholes"]
    assert table["rows right"] >= LEAST["rows"]


def _whole(case, finder, turns):
    """Yield what became of the conversation as one row, and what is wrong with it."""
    try:
        row = finder.whole(turns)
    except TurnFault:
        yield ("wholes refused", "")
        return
    if not case["whole"] and len(turns) == 1:
        return  # it is judged as a row of its one turn
    text, spans = case["rendering"], case["spans"]
    good = case["verdict"] == "spans" and text.startswith(row.text) and len(spans) == len(row.spans)
    good = good and all(
        span["may_start"] <= start <= span["must_start"]
        and span["must_end"] <= stop <= span["may_end"]
        for (start, stop), span in zip(row.spans, spans, strict=True)
    )
    yield ("wholes right", "") if good and case["whole"] else ("wholes wrong", f"whole {row}")


def _rows(case, finder):
    """Yield what became of each turn as a row of its own; only turns of good cases are counted."""
    for expected in case["rows"]:
        turn = expected["turn"]
        try:
            ((start, stop),) = finder.rows([turn])[0].spans
        except TurnFault:
            yield ("rows refused", "")
            continue
        good = expected["ok"] and start == expected["start"]
        if not (good and expected["end"] <= stop <= expected["may_end"]):
            yield ("rows wrong", f"turn {turn}: {start} to {stop}, expected {expected}")
        else:
            yield ("rows right" if case["verdict"] == "spans" else "rows of refused cases", "")


def test_a_traced_rendering_is_the_plain_one_and_tells_true_origins(cases, sources):
    for case in cases:
        finder = finder_of(case, sources)
        try:
            plain = finder.template.render(case["messages"], case["tools"])
        except TemplateRefusal:
            assert case["rendering"] is None
            continue
        assert plain == case["rendering"]
        traced = finder.template.trace(case["messages"], case["tools"])
        assert traced.text == plain
        for run in runs_of(traced.text):
            written = plain[run.start : run.stop].casefold()
            own = traced.trace.texts[run.field][run.begin : run.end].casefold()
            escaped = json.dumps(own, ensure_ascii=False)[1:-1]
            assert written in (own, escaped) or own == "reasoning effort"  # one changes this word


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STOPS = Stops(("<|im_end|>", "<|endoftext|>"), (), ("<|im_start|>",))
TALK = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Goodbye"},
)


def finder(template=CHATML, messages=TALK, stops=STOPS, **options) -> TurnFinder:
    return TurnFinder(ChatTemplate(template), messages, None, stops, **options)


def learnt(row) -> list[str]:
    return [row.text[start:stop] for start, stop in row.spans]


def test_an_answer_is_learnt_with_its_stop_and_nothing_after_it():
    row = finder().whole((2, 4))
    assert learnt(row) == ["Hello<|im_end|>", "Goodbye<|im_end|>"]
    assert row.text.endswith("Goodbye<|im_end|>")


def test_of_two_stops_in_a_row_the_first_ends_the_answer():
    closed = CHATML.replace("<|im_end|>\n'", "<|im_end|>\n<|endoftext|>'")
    assert learnt(finder(closed).whole((4,))) == ["Goodbye<|im_end|>"]


def test_a_stop_that_the_answer_spells_is_not_its_end():
    talk = (TALK[1], {"role": "assistant", "content": "It is <|im_end|>"})
    row = finder(messages=talk).whole((1,))
    assert learnt(row) == ["It is <|im_end|><|im_end|>"]
    ((start, stop),) = row.foreign
    assert row.text[start:stop] == "<|im_end|>"
    assert row.text[:start].endswith("It is ")


def test_earlier_turns_that_are_rewritten_make_a_row_for_each_turn():
    thinks = CHATML.replace(
        "m.content", "(m.content if loop.last else m.content.split('</think>')[-1])"
    )
    talk = (*TALK[:2], {"role": "assistant", "content": "<think>So.</think>Hello"}, *TALK[3:])
    with pytest.raises(TurnFault, match="writes turn 2 in another way") as caught:
        finder(thinks, talk).whole((2, 4))
    assert caught.value.kind == "whole"
    first, last = finder(thinks, talk).rows((2, 4))
    assert learnt(first) == ["<think>So.</think>Hello<|im_end|>"]
    assert learnt(last) == ["Goodbye<|im_end|>"]
    assert "So." not in last.text


@pytest.mark.parametrize(("template", "said"), [
    (CHATML.replace("m.content", "(m.content if m.role != 'system' else '')"),
     r"message 0 \(system\): the chat template leaves out content"),
    (CHATML.replace("m.content", "(m.content if m.role != 'assistant' else 'ok')"),
     r"message 2 \(assistant\): the chat template leaves out content"),
    (CHATML.replace("m.content", "m.content[:3]"), "leaves out a part of content"),
    (CHATML.replace("m.content", "[m.content]|string"), "writes content as a list of Python"),
    (CHATML.replace("<|im_end|>\n'", "\n'"), "turn 2: nothing ends the answer"),
    (CHATML.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>bot\n' }}"),
     r"asks for an answer with 'bot\\n' and writes the answered turn with 'assistant"),
    ("{{ raise_exception('no such thing') }}", "refuses the conversation: no such thing"),
])  # fmt: skip
def test_what_cannot_be_trained_on_as_it_is_meant_is_refused(template, said):
    with pytest.raises(TurnFault, match=said):
        finder(template).whole((2, 4))


def test_lost_text_may_be_noted_instead():
    drops = CHATML.replace("m.content", "(m.content if m.role != 'system' else '')")
    row = finder(drops, lost="note").whole((2, 4))
    assert row.notes == ("message 0 (system): the chat template leaves out content",)
    assert learnt(row) == ["Hello<|im_end|>", "Goodbye<|im_end|>"]


@pytest.mark.parametrize(("learn_template", "end"), [
    ("stop", "<|im_end|>"), ("turn", "<|im_end|>\n"), ("none", ""), ("eos", ""),
])  # fmt: skip
def test_how_much_after_an_answer_is_learnt(learn_template, end):
    # eos: Axolotl 0.18, ChatTemplateStrategy: labels are the text of a turn, and the first of
    # eot_tokens or end-of-text after it; turn: LLaMA-Factory 0.9.6, which learns the whole of its
    # slot "{{content}}<|im_end|>\n".
    made = finder(CHATML, learn_template=learn_template)
    assert learnt(made.whole((2, 4))) == [f"Hello{end}", f"Goodbye{end}"]
    assert learnt(made.rows((2,))[0]) == [f"Hello{end}"]
    kept = finder(UNENDED, missing_stop="note", learn_template=learn_template).whole((2, 4))
    assert learnt(kept)[0] == "Hello" + end.replace("<|im_end|>", "<end>")
    assert bool(kept.notes) == (learn_template in ("stop", "turn"))


def test_the_end_of_an_answer_is_learnt_where_it_is_named():
    stops = dataclasses.replace(STOPS, named=("<|im_end|>",))
    row = finder(CHATML, stops=stops, learn_template="eos").whole((2, 4))
    assert learnt(row) == ["Hello<|im_end|>", "Goodbye<|im_end|>"]
    apart = CHATML.replace("<|im_end|>", "!<|im_end|>")
    with pytest.raises(TurnFault, match="between the answer and"):
        finder(apart, stops=stops, learn_template="eos").whole((2,))


def test_what_a_template_opens_an_answer_with_is_learnt_only_as_generated():
    # As Qwen3 writes an answer without reasoning.
    opens = CHATML.replace(
        "m.content", "('<think></think>' if m.role == 'assistant' else '') + m.content"
    )
    assert learnt(finder(opens).whole((4,))) == ["<think></think>Goodbye<|im_end|>"]
    assert learnt(finder(opens, learn_template="none").whole((4,))) == ["Goodbye"]


@pytest.mark.parametrize("learn_template", ["none", "eos"])
def test_an_answer_of_nothing_has_nothing_to_learn_without_its_end(learn_template):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]
    made = finder(CHATML, messages, learn_template=learn_template)
    with pytest.raises(TurnFault, match="turn 1: the chat template writes no text of the answer"):
        made.whole((1,))


UNENDED = CHATML.replace("<|im_end|>\n'", "<end>\n'")


def test_an_answer_without_a_stop_may_be_noted_and_ends_where_the_template_ends_it():
    row = finder(UNENDED, missing_stop="note").whole((2, 4))
    assert learnt(row) == ["Hello<end>", "Goodbye<end>"]
    assert row.unended == (2, 4)
    (note,) = row.notes
    assert note.startswith("the chat template ends an answer with '<end>', where generation does")
    rows = finder(UNENDED.replace("<end>", "}\n<end>"), missing_stop="note")
    assert rows.whole((2, 4)).notes == (note,)  # what stands before may be the row's own
    bare = finder(UNENDED.replace("<end>", ""), missing_stop="note").whole((4,))
    assert learnt(bare) == ["Goodbye"]
    assert bare.notes[0].startswith("the chat template writes nothing after an answer")


def test_end_of_text_is_put_after_such_an_answer_where_that_is_asked_for():
    stops = dataclasses.replace(STOPS, appended="<|endoftext|>")
    row = finder(UNENDED, stops=stops).whole((4,))
    assert learnt(row) == ["Goodbye<end><|endoftext|>"]
    assert row.unended == row.notes == ()


@pytest.mark.parametrize("options", [
    {"missing_stop": "note"}, {"stops": dataclasses.replace(STOPS, appended="<|endoftext|>")},
])  # fmt: skip
@pytest.mark.parametrize(("closed", "said"), [
    ("<|im_end|>", "after '<|im_end|>', at which generation stops, the chat template writes"),
    ("", "turn 4: nothing ends the answer"),
])  # fmt: skip
def test_a_generation_prompt_that_nobody_asked_for_is_never_learnt(closed, said, options):
    always = CHATML.split("{% if add")[0].replace("<|im_end|>", closed) + "<|im_start|>assistant\n"
    with pytest.raises(TurnFault, match=re.escape(said)):
        finder(always, **options).whole((4,))


def test_the_refusal_says_what_becomes_of_a_system_turn_once_it_is_answered():
    last = (
        "{% for m in messages[1:] %}{{ (messages[0].content if loop.last and m.role == 'user'"
        " else '') + m.content }}"
    )
    with pytest.raises(TurnFault, match=r"once it is answered, message 0 \(system\): the chat"):
        finder(last + "{% if m.role != 'user' %}<|im_end|>{% endif %}{% endfor %}").whole((2,))


def test_a_template_argument_that_cures_it_is_named():
    opens = CHATML.replace("assistant\n' }}", "assistant\n' + ('' if nothink else '<think>') }}")
    opens = opens.replace("nothink", "(enable_thinking is defined and not enable_thinking)")
    with pytest.raises(TurnFault) as caught:
        finder(opens).whole((2,))
    assert caught.value.fix == "write model.chat_template_kwargs: {enable_thinking: false}"
    row = finder(opens, names={"enable_thinking": False}).whole((2,))
    assert learnt(row) == ["Hello<|im_end|>"]


def test_every_token_and_turns_of_roles_can_be_learnt():
    row = finder().every_token()
    assert learnt(row) == [row.text]
    assert row.text.endswith("Goodbye<|im_end|>\n")
    row = finder().roles((1, 3, 4))
    assert learnt(row) == ["Hi<|im_end|>", "Bye<|im_end|>", "Goodbye<|im_end|>"]


def test_the_clock_is_the_recipes_day():
    dated = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
    template = ChatTemplate(dated, now=datetime.date(2031, 2, 3))
    assert template.render(TALK).startswith("03 Feb 2031\n")
    assert template.reads_clock
    assert not finder().template.reads_clock
