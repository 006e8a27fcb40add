"""Which conversations are trained on under which real chat templates, and if their ids are right.

    python benchmarks/chat_templates.py [--tokenizer FOLDER]

The templates are those that come with TRL. Each template is tried with eight shapes of
conversations; the table that it prints stands in docs/data.md. For every row that comes out:
its ids before each answer must be those of `apply_chat_template(..., add_generation_prompt=True)`,
and its last label must be a token at which generation stops. Exits 1 where one is not.
--tokenizer: a tokenizer's folder in place of the small ones that are made here.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a town",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string", "description": "The town"}},
                "required": ["town"],
            },
        },
    }
]
CALL = {"id": "call00001", "function": {"name": "get_weather", "arguments": '{"town": "Bern"}'}}


def _said(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    turns = [
        {"role": ("user", "assistant")[number % 2], "content": text}
        for number, text in enumerate(texts)
    ]
    return ([{"role": "system", "content": system}] if system is not None else []) + turns


def _thought(turns: list[dict[str, Any]], **thoughts: str) -> list[dict[str, Any]]:
    return [
        {**turn, "reasoning_content": thoughts[f"at_{n}"]} if f"at_{n}" in thoughts else turn
        for n, turn in enumerate(turns)
    ]


SHAPES: dict[str, Mapping[str, Any]] = {
    "system": {"messages": _said("What is 2+2?", "It is 4.", system="Be brief.")},
    "turns": {"messages": _said("Hi", "Hello, who are you?", "Ann", "Nice to meet you.")},
    "tools": {
        "tools": TOOLS,
        "messages": [
            {"role": "user", "content": "Weather in Bern?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call00001", "content": '{"sky": "clear"}'},
            {"role": "assistant", "content": "It is clear."},
        ],
    },
    "thinking": {
        "messages": _thought(
            _said("2+2?", "4", "3+3?", "6"), at_1="Two and two.", at_3="Three and three."
        )
    },
    "no system": {"messages": _said("Hi", "Hello", system="")},
    "user last": {"messages": _said("Hi", "Hello", "And now?")},
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": [{"type": "text", "text": t} for t in ("Hel", "lo")]},
        ]
    },
    "letters": {
        "messages": _said(" café cafe\u0301 👩‍👩‍👧", "  déjà vu Å 👍🏽 \n- a", "e", "\u0301é")
    },
}
# What each template's family stops at, and its beginning and end of text.
STOPS = {
    "cohere": "<|END_OF_TURN_TOKEN|>", "deepseek": "<｜end▁of▁sentence｜>",
    "gemma": "<end_of_turn>",
    "gemma4": "<turn|> <|tool_response>", "diffusion": "<turn|> <|tool_response>",
    "glm4moe": "", "gptoss": "<|return|> <|call|>", "idefics3": "<end_of_utterance>",
    "llama3": "<|eot_id|> <|eom_id|>", "llava": "</s>", "muse": "<|eot|>", "phi3": "<|end|>",
    "smolvlm": "<end_of_utterance>",
}  # fmt: skip
TEXTS = {
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "gemma": ("<bos>", "<eos>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
}
REASONS = (
    ("refuses the conversation", "a"), ("leaves out", "b"), ("asks for an answer", "c"),
    ("nothing ends", "d"),
)  # fmt: skip
_CORPUS = "Hello who are you nice to meet you, it is clear. déjà vu 2+2 is 4 assistant user system"
_MARK = re.compile(r"<[^<>\s'\"=.]{1,40}>|<\|\"\|>")


def of_family(name: str, table: Mapping[str, Any], default: Any) -> Any:
    """Return the entry of a template's family: the longest beginning of its name."""
    known = [family for family in table if name.startswith(family)]
    return table[max(known, key=len)] if known else default


def templates() -> dict[str, str]:
    """Return TRL's chat templates by name, without those made for its own masks."""
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    files = sorted(folder.glob("*.jinja"))
    return {f.stem: f.read_text("utf-8") for f in files if not f.stem.endswith("_training")}


def tokenizer_for(name: str, source: str, kind: str, folder: Path | None = None) -> Any:
    """Return a tokenizer with a template and the tokens that the template writes.

    kind: 'bytes', byte-level BPE as GPT-2's, or 'pieces', with SentencePiece's underscores.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    begin, end = of_family(name, TEXTS, ("<s>", "</s>"))
    if folder is None:
        made: Any = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_trained(kind)))
    else:
        made = AutoTokenizer.from_pretrained(folder)
    stops = of_family(name, STOPS, "<|im_end|>").split()
    marks = {mark for mark in _MARK.findall(source) if "|" in mark or "｜" in mark}
    special = sorted({*marks, *stops, begin, end, "<start_of_turn>"})
    plain = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
    made.add_special_tokens({"additional_special_tokens": special})
    made.add_tokens(plain)
    made.bos_token, made.eos_token = begin, end
    made.chat_template = source
    return made


@lru_cache
def _trained(kind: str) -> str:
    """Return a small tokenizer as JSON."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE(byte_fallback=kind == "pieces", unk_token=None))
    if kind == "bytes":  # Llama 3's and Qwen's: digits and line breaks by rule, accents composed
        pattern = r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        raw.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        raw.pre_tokenizer = pre_tokenizers.Sequence([split, level])
        raw.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        raw.decoder = decoders.Sequence(steps)
        alphabet = []
    special = [f"<0x{n:02X}>" for n in range(256)] if kind == "pieces" else []
    lines = [_CORPUS, "<think>\n\n</think>\n\n", "assistant\n\n", *([_CORPUS.lower()] * 3)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    raw.train_from_iterator(lines, trainer)
    held = json.loads(raw.to_str())
    held["added_tokens"] = []  # SentencePiece's bytes are the model's own
    return json.dumps(held)


def encoder_for(name: str, tokenizer: Any) -> Any:
    """Return what encodes rows with a template, stopping where its family does."""
    from llmft.data.chat_format import ChatFormat
    from llmft.data.encoding import Encoder

    known = tokenizer.get_vocab()
    stops = of_family(name, STOPS, "<|im_end|>").split()
    ids = tuple(known[stop] for stop in stops)
    return Encoder(tokenizer, None, ChatFormat(stop_ids=ids, missing_stop="refuse"))


def tried(encoder: Any, shape: str, **asked: Any) -> tuple[str, list[str]]:
    """Return how a shape is trained on, and what is wrong with the ids; 'whole', 'rows' or why not.

    asked: what the data set's settings say, such as `turns`.
    """
    from llmft_datasets.chat import Chat

    from llmft.api.errors import DataError
    from llmft.api.train_settings import TrainSettings

    chat = Chat(Chat.Config(method="chat", path="rows.jsonl", **asked))
    try:
        row = chat.row(SHAPES[shape], "rows.jsonl:1")
        rows, _ = encoder.encode([row], TrainSettings())
    except DataError as error:
        return error.faults[0].what.removeprefix("rows.jsonl:1: "), []
    wrong: list[str] = []
    turns = [n for n, message in enumerate(row.messages) if message["role"] == "assistant"]
    several = len(rows) > 1
    for number, encoded in enumerate(rows):
        own = turns[number : number + 1] if several else turns
        wrong += _wrong(encoded, row.messages, own, encoder)
    return "rows" if several else "whole", wrong


def _wrong(encoded: Any, messages: Any, turns: Any, encoder: Any) -> Iterator[str]:
    """Yield what is wrong with a row in which some turns of a conversation are learnt."""
    tokenizer, stops = encoder.tokenizer, {*encoder.chat.stop_ids, encoder.end}
    ids, labels = list(encoded.input_ids), list(encoded.labels)
    learnt = [label != -100 for label in labels]
    begins = [n for n, own in enumerate(learnt) if own and not (n and learnt[n - 1])]
    ends = [n for n, own in enumerate(learnt) if own and not (learnt[n + 1 :] or [False])[0]]
    if len(begins) != len(turns):
        yield f"{len(begins)} answers, and not {len(turns)}"
        return
    tools = getattr(messages, "tools", None)
    for turn, first, last in zip(turns, begins, ends, strict=True):
        if ids[:first] not in served(encoder, list(messages)[:turn], tools):
            yield f"turn {turn}: the ids before the answer are not those of the prompt"
        if ids[last] not in stops:
            yield f"turn {turn}: the last label is no stop"
        text = tokenizer.decode(ids[first : last + 1])
        content = "".join(messages[turn]["content"].split())
        if content not in "".join(text.split()) and tokenizer.backend_tokenizer.normalizer is None:
            yield f"turn {turn}: {text!r} is learnt"


def served(encoder: Any, messages: Any, tools: Any) -> list[list[int]]:
    """Return the ids that transformers, and servers that use it, make of a prompt.

    Content is given as text, and as a list of parts: some templates take only one of them.
    """
    import datetime
    from unittest import mock

    from transformers.utils import chat_template_utils

    class Today(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.combine(encoder.chat.date, datetime.time(12))

    found = []
    in_parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    for given in (messages, in_parts):
        with suppress(Exception), mock.patch.object(chat_template_utils, "datetime", Today):
            found.append(
                encoder.tokenizer.apply_chat_template(
                    given,
                    tools=list(tools) if tools else None,
                    add_generation_prompt=True,
                    return_dict=False,
                    **encoder.chat.template_kwargs,
                )
            )
    return found


def main() -> int:
    """Print the table; return 1 where an id is wrong."""
    parser = argparse.ArgumentParser(description="try real chat templates with conversations")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer's folder")
    folder = parser.parse_args().tokenizer
    kinds = ("bytes", "pieces") if folder is None else ("given",)
    wrong: list[str] = []
    print("| template | " + " | ".join(SHAPES) + " |")
    print("|---|" + "---|" * len(SHAPES))
    count = rows = 0
    for name, source in templates().items():
        cells = []
        made = [encoder_for(name, tokenizer_for(name, source, kind, folder)) for kind in kinds]
        for shape in SHAPES:
            said = ""
            for kind, encoder in zip(kinds, made, strict=True):
                outcome, faults = tried(encoder, shape)
                wrong += [f"{name}, {shape}, {kind}: {fault}" for fault in faults]
                said = said or outcome
            count += 1
            rows += said in ("whole", "rows")
            if said not in ("whole", "rows"):
                said = next(letter for words, letter in REASONS if words in said)
            cells.append(said)
        print(f"| {name} | " + " | ".join(cells) + " |")
    print()
    print(f"\n{count} cells, {rows} trained on, {len(wrong)} with wrong ids", file=sys.stderr)
    print("\n".join(wrong), file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
