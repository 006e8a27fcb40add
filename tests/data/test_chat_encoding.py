"""Conversations as token ids: as serving makes them, learnt as asked, refused by name."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from llmft_datasets.chat import Chat

from llmft.api import ChatRow, CompletionRow, Conversation, PreferenceRow, PromptRow
from llmft.api.errors import DataError
from llmft.api.train_settings import TrainSettings
from llmft.data.chat_format import ChatFormat
from llmft.data.encoding import Encoder
from llmft.data.pair_encoding import encode_pairs
from tests.extended import extended

pytest.importorskip("trl")
_path = Path(__file__).parents[2] / "benchmarks" / "chat_templates.py"
_spec = importlib.util.spec_from_file_location("chat_templates_benchmark", _path)
program = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = program
_spec.loader.exec_module(program)
TEMPLATES = program.templates()
SHAPES = list(program.SHAPES)


@pytest.mark.parametrize("kind", extended(["bytes", "pieces"], ["pieces"]))
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_ids_before_an_answer_are_those_that_serving_makes(name, kind):
    encoder = program.encoder_for(name, program.tokenizer_for(name, TEMPLATES[name], kind))
    for shape in SHAPES:
        for turns in ("auto", "rows"):
            _, wrong = program.tried(encoder, shape, turns=turns)
            assert not wrong, f"{shape}, {turns}"


MISTRAL = (  # as Mistral 7B's: nothing stands after an answer's end-of-text
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content"
    " + ' [/INST]' }}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)


def tokenizer(name: str = "qwen3", kind: str = "bytes"):
    return program.tokenizer_for(name, {**TEMPLATES, "mistral": MISTRAL}[name], kind)


def encode(rows, made=None, form: ChatFormat | None = None, **settings):
    made = made or tokenizer()
    form = form or ChatFormat(stop=("<|im_end|>",))
    return Encoder(made, None, form).encode(rows, TrainSettings(**settings))


def learnt(made, row) -> list[str]:
    texts, open_ = [], False
    for label in row.labels:
        if label != -100:
            texts = [*texts[:-1], [*texts[-1], label]] if open_ else [*texts, [label]]
        open_ = label != -100
    return [made.decode(ids) for ids in texts]


TALK = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Goodbye"},
)


@pytest.mark.parametrize(("asked", "said"), [
    ({}, ["Hello<|im_end|>", "Goodbye<|im_end|>"]),
    ({"skip": (3,)}, ["Hello<|im_end|>"]),
    ({"learn": "last"}, ["Goodbye<|im_end|>"]),
    ({"learn": ("user",)}, ["Hi<|im_end|>", "Bye<|im_end|>"]),
    ({"learn": ("user", "assistant"), "skip": (1,)},
     ["Hi<|im_end|>", "Bye<|im_end|>", "Goodbye<|im_end|>"]),
    ({"learn": ("user", "assistant"), "skip": (0, 1)}, ["Bye<|im_end|>", "Goodbye<|im_end|>"]),
])  # fmt: skip
def test_what_is_asked_for_is_learnt(asked, said):
    made = tokenizer("qwen2_5")
    (row,), report = encode([ChatRow(TALK, **asked)], made)
    assert learnt(made, row) == said
    assert report.note() == ""


@pytest.mark.parametrize(("template", "left_out"), [("qwen2_5", "\n"), ("llama3", "")])
def test_a_row_ends_where_generation_stops(template, left_out):
    """What a template writes after the last answer's end is neither read nor learnt."""
    made = tokenizer(template)
    stop = "<|im_end|>" if template == "qwen2_5" else "<|eot_id|>"
    (row,), _ = encode([ChatRow(TALK, "rows:1")], made, ChatFormat(stop=(stop,)))
    text = made.apply_chat_template(list(TALK), tokenize=False)
    whole = made(text, add_special_tokens=False)["input_ids"]
    assert whole[: len(row.input_ids)] == list(row.input_ids)
    assert made.decode(whole[len(row.input_ids) :]) == left_out
    assert learnt(made, row) == [f"Hello{stop}", f"Goodbye{stop}"]


def test_every_token_can_be_learnt():
    (row,), _ = encode([ChatRow(TALK, learn="every_token")], tokenizer("qwen2_5"))
    assert row.labels == row.input_ids


@pytest.mark.parametrize(("asked", "said"), [
    ({"learn": "every_token", "skip": (1,)}, "turn 1 is not to be trained on .* every_token"),
    ({"learn": ("user",), "skip": (0, 2)}, "no turn of user to train on"),
])  # fmt: skip
def test_weights_that_leave_nothing_or_contradict_the_recipe_are_refused(asked, said):
    with pytest.raises(DataError, match=f"rows:1: .*{said}"):
        encode([ChatRow(TALK, "rows:1", **asked)], tokenizer("qwen2_5"))


def test_a_template_argument_that_is_not_read_is_refused_with_the_one_meant():
    row, made = ChatRow(TALK, "rows:1"), tokenizer("qwen3")
    encode([row], made, ChatFormat(template_kwargs={"enable_thinking": False}))
    with pytest.raises(DataError, match="reads no 'enable_thinkin'") as caught:
        encode([row], made, ChatFormat(template_kwargs={"enable_thinkin": False}))
    assert "did you mean 'enable_thinking'?" in caught.value.faults[0].fix


def test_rewritten_turns_become_rows_and_are_counted():
    made = tokenizer("qwen3")
    rows, report = encode([ChatRow(TALK, "x:1")], made)
    assert [learnt(made, row) for row in rows] == [
        ["<think>\n\n</think>\n\nHello<|im_end|>"], ["<think>\n\n</think>\n\nGoodbye<|im_end|>"]
    ]  # fmt: skip
    assert report.note() == "conversations with a row for each turn, as the model is asked: 1"
    assert report.rows == 2
    with pytest.raises(DataError, match="x:1: the chat template writes turn 1 in another way"):
        encode([ChatRow(TALK, "x:1", turns="whole")], made)
    rows, _ = encode([ChatRow(TALK, turns="rows")], tokenizer("qwen2_5"))
    assert len(rows) == 2


def test_a_tool_call_is_learnt_as_the_template_writes_it():
    shape = program.SHAPES["tools"]
    row = Chat(Chat.Config(method="chat", path="x")).row(shape, "x:1")
    made = tokenizer("qwen2_5")
    (encoded,), _ = encode([row], made)
    call, answer = learnt(made, encoded)
    assert '"name": "get_weather", "arguments": {"town": "Bern"}' in call
    assert answer.endswith("It is clear.<|im_end|>")
    assert "The weather of a town" in made.decode(encoded.input_ids)
    ids = Encoder(made, None).prompt_ids(row.messages[:1])
    assert list(encoded.input_ids[: len(ids)]) == ids


def test_special_tokens_in_a_message_stay_text_and_are_counted():
    made = tokenizer("qwen2_5")
    talk = (
        {"role": "user", "content": "What does <|im_end|> do?"},
        {"role": "assistant", "content": "With <|im_end|> a turn ends"},
    )
    (row,), report = encode([ChatRow(talk)], made)
    end = made.convert_tokens_to_ids("<|im_end|>")
    assert row.input_ids.count(end) == 3  # those of the system, the user and the assistant
    assert row.labels.count(end) == 1
    assert learnt(made, row) == ["With <|im_end|> a turn ends<|im_end|>"]
    assert "rows with special tokens in a message, which stay text: 1" in report.note()
    served = made.apply_chat_template(
        [talk[0]], add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
    )
    assert Encoder(made, None).prompt_ids(talk[:1]) == served
    assert list(row.input_ids[: len(served)]) == served


def test_pairs_share_the_prompt_that_is_served():
    made = tokenizer("qwen3")
    row = PreferenceRow(TALK[:1], "Hello", "Go away")
    (pair,), _ = encode_pairs(
        Encoder(made, None, ChatFormat(stop=("<|im_end|>",))), [row], TrainSettings()
    )
    prompt = program.served(Encoder(made, None), list(TALK[:1]), None)[0]
    for answer in (pair.chosen, pair.rejected):
        assert list(answer.input_ids[: len(prompt)]) == prompt
        assert answer.labels[-1] == made.convert_tokens_to_ids("<|im_end|>")


def test_a_token_that_would_reach_over_the_prompts_end_is_parted():
    """'<think>\\n' and the '\\n</think>' after it: serving never sees '\\n\\n' as one token."""
    made = tokenizer("qwen3_5_think")
    talk = (TALK[0], {"role": "assistant", "content": "Hello"})
    (row,), _ = encode([ChatRow(talk)], made)
    prompt = program.served(Encoder(made, None), list(TALK[:1]), None)[0]
    assert made.decode(prompt).endswith("<think>\n")
    assert list(row.input_ids[: len(prompt)]) == prompt
    assert set(row.labels[: len(prompt)]) == {-100}


def test_a_stop_that_nothing_stops_at_is_refused_and_can_be_named():
    made = tokenizer("qwen2_5")
    row = ChatRow(TALK[:2], "x:1")
    with pytest.raises(DataError, match="x:1: turn 1: nothing ends the answer") as caught:
        encode([row], made, ChatFormat(missing_stop="refuse"))
    assert "model.stop" in caught.value.faults[0].fix
    (appended,), _ = encode([row], made, ChatFormat(append_eos=True))
    assert learnt(made, appended) == ["Hello<|im_end|></s>"]
    made.eos_token = "<|im_end|>"
    assert encode([row], made, ChatFormat())[0]
    with pytest.raises(DataError, match=r"model.stop: 'the end' is \d+ tokens"):
        encode([row], made, ChatFormat(stop=("the end",)))


PAIR = PreferenceRow(TALK[:1], "Hello there", "Go away")


def trls(made, name: str) -> list[tuple[list[int], list[int]]]:
    """Return the ids and labels of PAIR by TRL's ORPO or CPO, which put end-of-text at the end."""
    module = importlib.import_module(f"trl.experimental.{name}.{name}_trainer")
    trainer = getattr(module, f"{name.upper()}Trainer")
    given = SimpleNamespace(processing_class=made, is_encoder_decoder=False, max_length=10**6)
    given.build_tokenized_answer = partial(trainer.build_tokenized_answer, given)
    asked = made.apply_chat_template(list(TALK[:1]), add_generation_prompt=True, tokenize=False)
    texts = {"prompt": asked}
    for side in ("chosen", "rejected"):
        answer = {"role": "assistant", "content": getattr(PAIR, side)}
        whole = made.apply_chat_template([*TALK[:1], answer], tokenize=False)
        texts[side] = whole.removeprefix(asked)
    row = trainer.tokenize_row(given, texts)
    return [(row[f"{side}_input_ids"], row[f"{side}_labels"]) for side in ("chosen", "rejected")]


@pytest.mark.parametrize("name", ["orpo", "cpo"])
@pytest.mark.parametrize(("template", "end", "count"), [
    ("qwen2_5", "<|im_end|>", 2),  # the template writes a line break after it
    ("qwen2_5", "</s>", 1),
    ("mistral", "</s>", 1),  # and here nothing, so that it is there once
])  # fmt: skip
def test_end_of_text_at_the_end_of_a_row_is_as_trl_puts_it(name, template, end, count):
    made = tokenizer(template)
    made.eos_token = end
    if template == "qwen2_5":
        made.bos_token = None
    form = ChatFormat(stop=(end,), learn_template="turn", append_eos="once")
    (pair,), _ = encode_pairs(Encoder(made, None, form), [PAIR], TrainSettings())
    for mine, (ids, labels) in zip((pair.chosen, pair.rejected), trls(made, name), strict=True):
        assert list(mine.input_ids) == ids
        assert list(mine.labels) == labels
        assert mine.labels.count(made.eos_token_id) == count


@pytest.mark.parametrize("template", ["qwen2_5", "mistral"])
def test_an_answer_apart_and_end_of_text_in_any_case_are_as_trls_old_dpo_makes_them(template):
    """TRL 0.19, DPOTrainer.tokenize_row: tokenizer(answer) + [eos], each without special tokens."""
    made = tokenizer(template, "pieces")
    asked = made.apply_chat_template(list(TALK[:1]), add_generation_prompt=True, tokenize=False)
    answer = {"role": "assistant", "content": "Hello there"}
    whole = made.apply_chat_template([*TALK[:1], answer], tokenize=False)
    prompt, after = (
        made(text, add_special_tokens=False)["input_ids"]
        for text in (asked, whole.removeprefix(asked))
    )
    form = ChatFormat(learn_template="turn", append_eos="always", tokenize_apart=True)
    (pair,), _ = encode_pairs(Encoder(made, None, form), [PAIR], TrainSettings())
    expected = [*after, made.eos_token_id]
    assert list(pair.chosen.input_ids) == prompt + expected
    assert list(pair.chosen.labels) == [-100] * len(prompt) + expected
    together = dataclasses.replace(form, tokenize_apart=False)
    (other,), _ = encode_pairs(Encoder(made, None, together), [PAIR], TrainSettings())
    assert made.decode(pair.chosen.input_ids) != made.decode(other.chosen.input_ids)


def test_a_completion_apart_is_tokenised_as_a_text_of_its_own():
    made = tokenizer("mistral", "pieces")
    row = CompletionRow("Say it:\n", "Hello there")
    (mine,), _ = encode([row], made, ChatFormat(tokenize_apart=True))
    alone = made("Hello there", add_special_tokens=False)["input_ids"]
    assert [label for label in mine.labels if label != -100] == [*alone, made.eos_token_id]
    (together,), _ = encode([row], made, ChatFormat())
    assert together.input_ids != mine.input_ids


def test_an_answer_that_end_of_text_follows_learns_to_stop():
    made = tokenizer("qwen2_5")
    row = ChatRow(TALK[:2], "x:1")
    for missing in ("note", "refuse"):
        (one,), report = encode([row], made, ChatFormat(append_eos="once", missing_stop=missing))
        assert learnt(made, one) == ["Hello<|im_end|></s>"]
        assert "does not learn to stop" not in report.note()
    (many,), report = encode([ChatRow(TALK)], made, ChatFormat(append_eos="once"))
    assert learnt(made, many) == ["Hello<|im_end|>", "Goodbye<|im_end|></s>"]
    assert "does not learn to stop" in report.note()  # of the first answer


def test_end_of_text_that_a_tokenizer_has_not_cannot_be_put():
    made = tokenizer("qwen2_5")
    made.eos_token = None
    with pytest.raises(DataError, match=r"model.append_eos: the tokenizer has no end-of-text"):
        encode([ChatRow(TALK[:2])], made, ChatFormat(append_eos="always"))


def test_the_first_rows_that_are_refused_are_named_together():
    made = tokenizer("gemma")
    system = {"role": "system", "content": "Be brief."}
    rows = [ChatRow((system, *TALK), f"x:{n}") if n % 2 else ChatRow(TALK, f"x:{n}")
            for n in range(10)]  # fmt: skip
    form = ChatFormat(stop=("<end_of_turn>",))
    with pytest.raises(DataError, match=r"x:1: .*; x:3: .*; x:5: .* \(5 in all") as caught:
        encode(rows, made, form)
    assert "on_bad_row: skip" in caught.value.faults[0].fix
    prompts = [PromptRow((system, *TALK[:1]), (), "x:11"), PromptRow(TALK[:1])]
    asked = [CompletionRow((system, *TALK[:1]), "Hello", (), "x:12")]
    refused = Encoder(made, None, form).refusals([*rows, *prompts, *asked])
    assert sorted(refused) == [1, 3, 5, 7, 9, 10, 12]
    assert refused[12].startswith("x:12: the chat template refuses")


def test_template_arguments_of_a_row_and_of_the_recipe_reach_the_template():
    made = tokenizer("qwen3")
    asked = {"enable_thinking": False}
    of_row = Encoder(made, None).prompt_ids(Conversation(TALK[:1], (), asked))
    of_recipe = Encoder(made, None, ChatFormat(asked)).prompt_ids(TALK[:1])
    assert of_row == of_recipe
    assert made.decode(of_row).endswith("<think>\n\n</think>\n\n")
    assert made.decode(of_row) != made.decode(Encoder(made, None).prompt_ids(TALK[:1]))


def axolotls_labels(made, messages, ends) -> tuple[list[int], list[int]]:
    """Return ids and labels by Axolotl 0.18's rule, written anew from ChatTemplateStrategy.

    A turn of the assistant is where its tokens differ from those of a dummy text; the first of the
    end tokens is learnt too where it stands within three tokens after that.
    """

    def ids_of(turns):
        return made.apply_chat_template(turns, tokenize=True, return_dict=False)

    ids = ids_of(messages)
    labels = [-100] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        full = ids_of(messages[: number + 1])
        dummy = ids_of([*messages[:number], {"role": "assistant", "content": "[[dummy_message]]"}])
        both = range(min(len(full), len(dummy)))
        start = next(i for i in both if full[i] != dummy[i])
        end = len(full) - next(i for i in both if full[-1 - i] != dummy[-1 - i])
        labels[start:end] = ids[start:end]
        place = next((i for i in range(end, len(ids)) if ids[i] in ends), None)
        if place is not None and place - end <= 3:
            labels[place] = ids[place]
    return ids, labels


@pytest.mark.parametrize(("name", "refused"), [
    ("qwen2_5", ()), ("llama3", ()), ("gemma", ("system",)), ("lfm2", ()),
    # Axolotl's row has earlier turns as later ones leave them, without the thoughts' marks.
    ("qwen3", ("turns", "system")), ("qwen3_6", ("turns", "system")),
])  # fmt: skip
@pytest.mark.parametrize("ended", [True, False])
def test_with_eos_what_axolotl_learns_is_learnt_or_the_row_is_refused(name, refused, ended):
    made = tokenizer(name)
    if ended:
        stops = program.encoder_for(name, made)._chat.stops.stops
        made.eos_token = next(stop for stop in stops if stop in TEMPLATES[name])
    encoder = Encoder(made, None, ChatFormat(learn_template="eos"))
    system = {"role": "system", "content": "Be brief."}
    told = set()
    for shape, messages in (("turn", TALK[:2]), ("turns", TALK), ("system", (system, *TALK))):
        try:
            (found,), _ = encoder.encode([ChatRow(messages, turns="whole")], TrainSettings())
        except DataError:
            told.add(shape)
            continue
        ids, labels = axolotls_labels(made, list(messages), {made.eos_token_id})
        count = len(found.input_ids)
        assert list(found.input_ids) == ids[:count]
        assert list(found.labels) == labels[:count]
        assert set(labels[count:]) <= {-100}
        assert (labels[count - 1] == made.eos_token_id) == (ended or name == "llama3")
    assert told == set(refused)


def test_an_end_of_text_that_does_not_follow_the_answer_is_refused():
    # Phi-3's own template ends a turn with <|end|> and the conversation with the end-of-text.
    with pytest.raises(DataError, match="between the answer and '</s>' the chat template writes"):
        encode([ChatRow(TALK[:2])], tokenizer("phi3"), ChatFormat(learn_template="eos"))
