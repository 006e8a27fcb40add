"""Every builtin task, reward function and data set about them passes the public kit."""

from __future__ import annotations

import json

from llmft_datasets.from_stage import FromStage
from llmft_datasets.prompts import Prompts
from llmft_rewards.cosine import Cosine
from llmft_rewards.exact_match import ExactMatch
from llmft_rewards.final_number import FinalNumber
from llmft_rewards.format import Format
from llmft_rewards.length import Length
from llmft_rewards.math_verify import MathVerify
from llmft_rewards.pattern import Pattern
from llmft_rewards.repetition import Repetition
from llmft_rewards.soft_overlong import SoftOverlong
from llmft_tasks.collect import Collect
from llmft_tasks.evaluate import Evaluate
from llmft_tasks.rank import Rank

from llmft.testing import DatasetContract, RewardContract, TaskContract


def write_lines(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class TestCollect(TaskContract):
    method_class = Collect
    configs = [{}, {"num_return_sequences": 2, "max_new_tokens": 4, "temperature": 1.5}]


class TestEvaluate(TaskContract):
    method_class = Evaluate
    configs = [{}, {"metrics": ["loss", "exact_match"], "max_new_tokens": 4, "base": True}]


class TestRank(TaskContract):
    method_class = Rank
    configs = [
        {"samples": "collect", "judge": {"method": "longer"}},
        {"samples": "collect", "judge": {"method": "longer"}, "pairs": "best_worst"},
    ]

    def earlier(self, folder):
        row = {"prompt": "Where is Oslo?", "completions": ["Peru.", "In Norway.", "Oslo?", "Peru."]}
        (folder / "collect").mkdir()
        write_lines(folder / "collect" / "rows.jsonl", [row, row | {"prompt": "And Lima?"}])
        return {"collect": folder / "collect"}


class TestExactMatch(RewardContract):
    method_class = ExactMatch
    configs = [{}, {"partial": 0.5, "rambling": 0.25}]


class TestFinalNumber(RewardContract):
    method_class = FinalNumber
    configs = [{}, {"any_number": 0.1, "weight": 0.5}]


class TestLength(RewardContract):
    method_class = Length
    configs = [{"target": 3}, {"target": 20, "unit": "characters"}]


class TestFormat(RewardContract):
    method_class = Format
    configs = [
        {"max_words": 5},
        {
            "starts_with": "In",
            "ends_with": ".",
            "contains": "or",
            "lacks": "Peru",
            "one_line": True,
        },
    ]


class TestMathVerify(RewardContract):
    method_class = MathVerify
    configs = [{}, {"answer_tag": "answer", "boxed": "none", "extraction_mode": "first_match"}]


class TestCosine(RewardContract):
    method_class = Cosine
    configs = [{"max_len": 20}, {"max_len": 7, "max_value_wrong": 0.0, "answer_tag": "answer"}]


class TestRepetition(RewardContract):
    method_class = Repetition
    configs = [{}, {"ngram_size": 1, "max_penalty": -2.0}]


class TestSoftOverlong(RewardContract):
    method_class = SoftOverlong
    configs = [{"max_length": 4, "cache_length": 2}]


class TestPattern(RewardContract):
    method_class = Pattern
    configs = [{"pattern": "I.*[.]$"}]


class TestPrompts(DatasetContract):
    method_class = Prompts
    configs = [
        {"path": "rows.jsonl"},
        {"path": "rows.jsonl", "chat": True, "system": "Be brief.", "remove_response": True},
    ]
    bad_records = [{"prompt": " "}, {"question": "Who?"}, {"prompt": [{"role": "user"}]}]

    def write(self, folder):
        rows = [{"prompt": "Who?", "right": "Ann"}, {"prompt": "Whom?", "right": ["Ann", "Annie"]}]
        path = write_lines(folder / "rows.jsonl", rows)
        return {"path": path, "columns": {"answers": "right"}}


class TestFromStage(DatasetContract):
    method_class = FromStage
    configs = [{"stage": "rank"}]
    bad_records = [
        {"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"},
        {"chosen": "a", "rejected": "b"},
        {"prompt": "Who?", "chosen": None, "rejected": "b"},
    ]

    def write(self, folder):
        row = {
            "prompt": "Who?",
            "chosen": "Ann",
            "rejected": "Bob",
            "margin": 1,
            "answers": ["Ann"],
        }
        write_lines(
            folder / "rows.jsonl", [row, row | {"prompt": [{"role": "user", "content": "?"}]}]
        )
        self.folder = folder
        return {"stage": "rank"}

    def make(self, settings):
        made = super().make(settings)
        made.upstream = {"stage": self.folder}
        return made
