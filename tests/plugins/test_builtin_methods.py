"""Every builtin method passes the public kit, as any plugin must."""

from __future__ import annotations

import json

from llmft_alignments.sft import Sft
from llmft_datasets.chat import Chat
from llmft_datasets.instruction import Instruction
from llmft_datasets.jsonl import Jsonl
from llmft_datasets.triviaqa import TriviaQA
from llmft_trackers.console import Console
from llmft_trackers.jsonl import Jsonl as JsonlTracker

from llmft.testing import AlignmentContract, DatasetContract, TrackerContract


def write_lines(folder, rows) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class TestSft(AlignmentContract):
    method_class = Sft


class TestTriviaQA(DatasetContract):
    method_class = TriviaQA
    bad_records = [
        {"answer": {"value": "Ann", "aliases": []}},
        {"question": "Who?"},
        {"question": "Who?", "answer": {"value": " ", "aliases": []}},
        {"question": "Who?", "answer": "Ann", "aliases": [3]},
    ]

    def write(self, folder):
        answer = {"value": "Ann", "aliases": ["Ann", "Annie"]}
        rows = [{"question": "Who?", "answer": answer}, {"question": "Whom?", "answer": "Ann"}]
        return {"path": write_lines(folder, rows)}


class TestJsonl(DatasetContract):
    method_class = Jsonl
    configs = [{"path": "rows.jsonl"}]
    bad_records = [{"prompt": "a"}, {"prompt": "a", "completion": None}, {"prompt": 1.5}]

    def write(self, folder):
        return {"path": write_lines(folder, [{"prompt": "a", "completion": "b"}] * 2)}


class TestChat(DatasetContract):
    method_class = Chat
    configs = [{"path": "rows.jsonl"}, {"path": "rows.jsonl", "learn": "last"}]
    bad_records = [
        {"messages": []},
        {"turns": []},
        {"messages": [{"role": "user", "content": "a"}]},
    ]

    def write(self, folder):
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        return {"path": write_lines(folder, [{"messages": turns}] * 2)}


class TestInstruction(DatasetContract):
    method_class = Instruction
    configs = [{"path": "rows.jsonl"}, {"path": "rows.jsonl", "system": "Be brief."}]
    bad_records = [{"instruction": "a"}, {"output": "a"}, {"instruction": "a", "output": None}]

    def write(self, folder):
        task = {"instruction": "a", "input": "", "output": "b"}
        return {"path": write_lines(folder, [task, {**task, "input": "c"}])}


class TestConsole(TrackerContract):
    method_class = Console


class TestJsonlTracker(TrackerContract):
    method_class = JsonlTracker
