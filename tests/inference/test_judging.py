"""Answers judged side by side: by a made-up judge on loopback, and by an embedded model served."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmft.api.errors import EnvironmentFault
from llmft.cli.main import main
from llmft.inference import judging
from llmft.inference.judging import TEMPLATE, TEMPLATE_SHA256, judge_of, judge_pairs
from llmft.system.api_client import ApiClient
from tests.exporting.conftest import lora_run, rows_file, train  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures by their names

KEY = "sk-judge-canary"


class Judge:
    """A judge that says what `says` makes of the answers A and B, and can fail first."""

    def __init__(self, says=lambda a, b: "[[C]]", models=("wise",)) -> None:
        self.says, self.models = says, models
        self.seen: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.statuses: list[int] = []
        self.location = ""
        self.raw: bytes | None = None
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, json.dumps({"data": [{"id": m} for m in judge.models]}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                judge.seen.append((body, dict(self.headers)))
                status = judge.statuses.pop(0) if judge.statuses else 200
                text = body["messages"][0]["content"]
                said = judge.says(_between(text, "answer A"), _between(text, "answer B"))
                made = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
                self._send(status, judge.raw or made)

            def _send(self, status: int, data: bytes) -> None:
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", judge.location)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.client = ApiClient.at(self.url)


def _between(text: str, mark: str) -> str:
    return text.split(f"[{mark}]\n")[1].split(f"\n[end of {mark}]")[0]


@pytest.fixture
def judge() -> Iterator[Judge]:
    made = Judge()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LLMFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def longer(a: str, b: str) -> str:
    return "[[A]]" if len(a) > len(b) else "[[B]]" if len(b) > len(a) else "[[C]]"


def judged(judge, pairs, **more):
    return judge_pairs(pairs, judge.client, "wise", sleep=lambda _: None, **more)


def test_both_orders_are_asked_and_the_win_rate_counts_ties_half(judge):
    judge.says = longer
    pairs = [("q", "long answer", "short"), ("q", "a", "longer"), ("q", "ab", "cd"),
             ("q", "longest of all", "no")]  # fmt: skip
    found = judged(judge, pairs)
    assert [pair.outcome for pair in found.pairs] == ["won", "lost", "tie", "won"]
    assert found.win_rate["value"] == (1 + 0 + 0.5 + 1) / 4
    # Student's t by hand: mean 0.625, sd sqrt(0.6875 / 3) = 0.478714, t(3) = 3.182446.
    assert found.win_rate["low"] == 0.0
    assert found.win_rate["high"] == 1.0
    assert found.asked == 8
    first, second = (body["messages"][0]["content"] for body, _ in judge.seen[:2])
    assert _between(first, "answer A") == _between(second, "answer B") == "long answer"
    assert {body["temperature"] for body, _ in judge.seen} == {0}
    assert {body["model"] for body, _ in judge.seen} == {"wise"}


def test_a_judge_that_prefers_a_place_makes_ties(judge):
    judge.says = lambda a, b: "the first is better [[A]]"
    found = judged(judge, [("q", "x", "y"), ("q", "v", "w")])
    assert found.count("tie") == found.inconsistent == 2
    assert found.win_rate["value"] == 0.5


def test_equal_answers_are_a_tie_and_are_not_asked(judge):
    found = judged(judge, [("q", "same", "same")])
    assert found.count("tie") == 1
    assert not judge.seen


def test_a_reply_without_a_mark_is_counted_and_the_last_mark_counts(judge):
    judge.says = lambda a, b: "I cannot say" if "odd" in a + b else "not [[B]] but [[a]]"
    found = judged(judge, [("q", "odd", "y"), ("q", "v", "w")])
    assert found.unreadable == 2
    assert found.pairs[0].verdicts == ("", "")
    assert found.pairs[1].verdicts == ("won", "lost")


def test_an_interrupted_comparison_goes_on_where_it_stopped(judge, cache):
    judge.says = longer
    pairs = [("q", f"answer {n}", "x") for n in range(4)]
    judge.statuses = [200] * 5 + [400]
    with pytest.raises(EnvironmentFault, match="does not judge"):
        judged(judge, pairs)
    assert len(judge.seen) == 6
    (kept,) = (cache / "judged").iterdir()
    kept.write_bytes(kept.read_bytes() + b'{"key": "torn')  # as a kill leaves it
    found = judged(judge, pairs)
    assert (found.asked, found.cached) == (3, 5)
    assert found.win_rate["value"] == 1.0
    again = judged(judge, pairs)
    assert (again.asked, again.cached) == (0, 8)
    assert again.pairs == found.pairs
    assert judge_pairs(pairs, judge.client, "another").asked == 8  # its own judgements


def test_when_the_time_is_up_what_is_judged_is_kept_and_the_rest_is_said(judge):
    late = threading.Event()

    def says(a: str, b: str) -> str:
        if "slow" in a + b:
            late.wait(5)
        return longer(a, b)

    judge.says = says
    pairs = [("q", "long answer", "short"), ("q", "slow", "er"), ("q", "x", "yy")]
    found = judge_pairs(pairs, judge.client.within(0.5), "wise", sleep=lambda _: None)
    late.set()
    assert found.unfinished == "1 of 3 questions are judged"
    assert (found.seconds, [pair.outcome for pair in found.pairs]) == (0.5, ["won"])
    found = judge_pairs(pairs, judge.client.within(30), "wise", sleep=lambda _: None)
    assert (found.unfinished, len(found.pairs), found.cached) == ("", 3, 2)


def test_pauses_for_a_busy_judge_are_part_of_its_time(judge):
    judge.statuses = [503] * 3
    slept: list[float] = []
    found = judge_pairs([("q", "a", "bb")], judge.client.within(2.5), "wise", sleep=slept.append)
    assert found.unfinished == "0 of 1 questions are judged"
    assert slept[0] == 1.0
    assert 1.0 < slept[1] < 1.5  # not 2: no more than is left


def test_nothing_is_kept_where_the_user_wants_no_cache(judge, cache, monkeypatch):
    monkeypatch.setenv("LLMFT_CACHE", "off")
    assert judged(judge, [("q", "a", "b")]).asked == 2
    assert judged(judge, [("q", "a", "b")]).asked == 2
    assert not cache.exists()


def test_a_link_in_place_of_the_cache_is_refused(judge, cache, tmp_path):
    judged(judge, [("q", "a", "b")])
    (kept,) = (cache / "judged").iterdir()
    theirs = tmp_path / "theirs"
    theirs.write_text("untouched")
    kept.unlink()
    kept.symlink_to(theirs)
    assert main_code(lambda: judged(judge, [("q", "a", "b")])) == "E605"
    assert theirs.read_text() == "untouched"


def main_code(act) -> str:
    from llmft.api.errors import LlmftError

    with pytest.raises(LlmftError) as caught:
        act()
    return caught.value.faults[0].code


def test_a_busy_server_is_asked_again_and_not_for_ever(judge):
    judge.statuses = [429, 503, 500]
    waits: list[float] = []
    found = judge_pairs([("q", "a", "b")], judge.client, "wise", sleep=waits.append)
    assert found.asked == 2
    assert waits == [1.0, 2.0, 4.0]
    judge.statuses = [503] * 9
    with pytest.raises(EnvironmentFault, match="503"):
        judged(judge, [("q", "c", "d")])
    assert len(judge.seen) == 3 + 2 + 4


@pytest.mark.parametrize("raw", [b"<html>", b"{}", b"[1]", b'{"choices": [{"message": {}}]}'])
def test_what_is_not_openai_s_form_is_named(judge, raw):
    judge.raw = raw
    assert main_code(lambda: judged(judge, [("q", "a", "b")])) == "E213"


def test_long_texts_are_cut_and_counted_and_long_replies_are_cut(judge):
    judge.says = lambda a, b: "[[A]]" + "x" * 100_000
    found = judged(judge, [("q", "a" * 50_000, "b")])
    assert found.cut == 2  # the answer, in each order
    assert all(len(body["messages"][0]["content"]) < 12_000 for body, _ in judge.seen)
    assert len(found.pairs[0].replies[0]) == judging.LONGEST_REPLY


def test_text_of_an_answer_is_not_filled_in_again(judge):
    judged(judge, [("{answer_b}", "{question} {answer_b}", "SECRET")])
    text = judge.seen[0][0]["messages"][0]["content"]
    assert _between(text, "answer A") == "{question} {answer_b}"
    assert text.count("SECRET") == 1


def test_the_only_model_is_the_judge_and_of_several_one_is_to_be_named(judge):
    assert judge_of(judge.client, None) == "wise"
    assert judge_of(judge.client, "unlisted") == "unlisted"
    judge.models = ("one", "two")
    assert main_code(lambda: judge_of(judge.client, None)) == "E090"


def test_a_key_stays_with_the_host_that_is_named(judge):
    other = Judge()
    try:
        judge.statuses, judge.location = [307], other.url + "/chat/completions"
        client = ApiClient.at(judge.url, KEY)
        with pytest.raises(EnvironmentFault, match="not followed"):
            judge_pairs([("q", "a", "b")], client, "wise")
        assert judge.seen[0][1]["Authorization"] == f"Bearer {KEY}"
        assert not other.seen
    finally:
        other.server.shutdown()
        other.server.server_close()


def test_a_run_is_judged_against_its_base_from_the_command_line(
    judge, lora_run, rows_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("LLMFT_API_KEY=from-a-file\nOPENAI_API_KEY=x\n")
    monkeypatch.setenv("OPENAI_API_KEY", "never-read")
    monkeypatch.setenv("LLMFT_API_KEY", KEY)
    judge.says = lambda a, b: "\x1b[31m" + longer(a, b)
    output = tmp_path / "pairs.jsonl"
    args = ["evaluate", str(lora_run), "--judge", judge.url, "--data", str(rows_file),
            "--limit", "3", "--max-new-tokens", "6", "--output", str(output)]  # fmt: skip
    assert main(args) == 0
    told = capsys.readouterr()
    host = judge.url.split("/")[2]
    assert f"asking {host}, unencrypted, with the key of LLMFT_API_KEY" in told.err
    assert f"judged by wise at {host}: 3 questions" in told.out
    assert "\x1b[31m" not in told.out
    assert TEMPLATE_SHA256[:16] in told.out
    assert {headers["Authorization"] for _, headers in judge.seen} == {f"Bearer {KEY}"}
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 3
    assert {"prompt", "answer", "other", "verdicts", "replies", "outcome"} <= set(rows[0])
    assert main([*args[:-2], "--against", str(lora_run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tied"] == 3  # the same run: the same answers
    assert found["requests"] == 0
    assert found["judge"]["template"] == TEMPLATE
    assert found["judge"]["template_sha256"] == TEMPLATE_SHA256
    everything = "".join(p.read_text() for p in tmp_path.rglob("*.jsonl"))
    assert KEY not in everything


def test_a_judge_that_never_says_which_is_better_is_refused(judge, lora_run, rows_file, capsys):
    judge.says = lambda a, b: "hm"
    args = ["evaluate", str(lora_run), "--judge", judge.url, "--data", str(rows_file),
            "--limit", "2", "--max-new-tokens", "4"]  # fmt: skip
    assert main(args) == 4
    assert "gave no verdict in any of" in capsys.readouterr().err


def test_options_that_would_do_nothing_are_refused(lora_run, judge, capsys):
    run = str(lora_run)
    for more in (
        ["--against", "base"],
        ["--judge-model", "x"],
        ["--timeout", "5"],
        ["--num-fewshot", "1"],
        ["--include-path", "tasks"],
        ["--judge", judge.url, "--lm-eval", "arc_easy"],
        ["--judge", judge.url, "--metrics", "loss"],
        ["--judge", judge.url, "--base"],
    ):
        assert main(["evaluate", run, *more]) == 2
        assert "error[E090]" in capsys.readouterr().err
    assert main(["evaluate", "embedded:model", "--judge", judge.url]) == 6
    assert not judge.seen


def test_the_page_shows_what_a_judge_is_sent():
    page = Path(__file__).parents[2] / "docs" / "after-training.md"
    assert f"```text\n{TEMPLATE.rstrip()}\n```" in page.read_text("utf-8")
    assert TEMPLATE.isascii()
