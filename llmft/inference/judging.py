"""Open answers judged side by side by a model behind an OpenAI-compatible endpoint.

Each pair is shown in both orders; a judge that takes the first, or the second, both times has
preferred a place and not an answer, and the pair is a tie (Zheng et al. 2023, arXiv:2306.05685,
section 3.4). The judge's words are a stranger's text: one mark is read from them, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmft.api.errors import EnvironmentFault, RecipeError
from llmft.data.cache import own_lines
from llmft.evaluation.intervals import Score, score_of
from llmft.inference.evaluating import Asked, evaluate
from llmft.system import fsio
from llmft.system.api_client import ApiClient, Declined, OutOfTime, Unavailable
from llmft.system.plain_files import read_own

TEMPLATE = (Path(__file__).parent / "judge_template.txt").read_text("utf-8")
TEMPLATE_SHA256 = hashlib.sha256(TEMPLATE.encode()).hexdigest()
TRIES, PAUSE = 4, 1.0
"""Times that a request is sent to a server that is busy, and the first pause, which doubles."""
MAX_TOKENS = 200
LONGEST_TEXT, LONGEST_REPLY = 8000, 4000
"""Letters of a question or an answer that are sent at most, and of a reply that are kept."""
TIMEOUT = 3600.0
"""Seconds of waiting for the judge, all its answers together."""
_LARGEST_CACHE = 2**28
_LONGEST_NAME = 200
_MARK = re.compile(r"\[\[\s*([ABC])\s*\]\]", re.IGNORECASE)
WON, LOST, TIE = "won", "lost", "tie"


@dataclass(frozen=True)
class JudgedPair:
    """A question, both answers, and what was said of them.

    verdicts: in the first order (ours is A) and in the second (ours is B): `won`, `lost`, `tie`, or
    '' where no mark could be read. replies: the judge's words, cut.
    """

    prompt: Any
    answer: str
    other: str
    verdicts: tuple[str, str]
    replies: tuple[str, str]

    @property
    def outcome(self) -> str:
        """Won or lost where both orders say so; else a tie."""
        first, second = self.verdicts
        return first if first == second and first else TIE


@dataclass(frozen=True)
class Judgement:
    """What a judge found. win_rate: a tie counts half; its 95 % interval is over the pairs.

    asked, cached: requests that were sent, and those whose answer was kept from before. cut: texts
    that were too long and sent without their end. unfinished: how far it came, where the
    time was up after so many seconds of waiting.
    """

    host: str
    model: str
    pairs: Sequence[JudgedPair]
    asked: int
    cached: int
    cut: int
    unfinished: str = ""
    seconds: float = 0.0

    @property
    def win_rate(self) -> Score:
        """The share of pairs that are won."""
        worth = {WON: 1.0, TIE: 0.5, LOST: 0.0}
        return score_of([worth[pair.outcome] for pair in self.pairs], within=(0.0, 1.0))

    def count(self, outcome: str) -> int:
        """Return how many pairs ended so."""
        return sum(pair.outcome == outcome for pair in self.pairs)

    @property
    def inconsistent(self) -> int:
        """Pairs of which the two orders say different things."""
        return sum(all(p.verdicts) and p.verdicts[0] != p.verdicts[1] for p in self.pairs)

    @property
    def unreadable(self) -> int:
        """Replies without a mark."""
        return sum(verdict == "" for pair in self.pairs for verdict in pair.verdicts)


Tell = Callable[[str, int, int], None]


def judge_runs(
    asked: Asked, against: str, client: ApiClient, model: str | None, tell: Tell
) -> Judgement:
    """Return how a run's answers compare with another run's, or with its own base's (`base`).

    Both answer greedily, each by its own run's settings. model: the judge's name; None: the only
    one that the endpoint has. Raises RecipeError (E090) where the two were asked other questions.
    """
    name = judge_of(client, model)  # before anything is generated
    ours = evaluate(replace(asked, answers=True), tell).rows
    other = (
        replace(asked, base=True, step=None)
        if against == "base"
        else replace(asked, target=against, stage=None, step=None, base=False)
    )
    theirs = evaluate(replace(other, answers=True), tell).rows
    if [row["prompt"] for row in ours] != [row["prompt"] for row in theirs]:
        what = f"'{asked.target}' and '{against}' are scored on different questions"
        raise RecipeError("E090", what, fix="name the rows for both: --data FILE")
    pairs = [
        (row["prompt"], str(row["answer"]), str(its["answer"]))
        for row, its in zip(ours, theirs, strict=True)
    ]
    return judge_pairs(pairs, client, name, tell)


def judge_of(client: ApiClient, wanted: str | None) -> str:
    """Return the name of the judge at an endpoint.

    Raises RecipeError (E090) where it is not there, or several are and none is named, and
    EnvironmentFault (E213) where the endpoint lists none in OpenAI's form.
    """
    if wanted is not None:
        return wanted  # some servers list none, or not all
    try:
        told = client.get("/models")
        names = [str(one["id"])[:_LONGEST_NAME] for one in told["data"]]
    except OutOfTime as error:
        what = f"the endpoint at {client.host} has not told its models in the time that it has"
        raise EnvironmentFault("E213", what, fix="wait longer: --timeout SECONDS") from error
    except (Declined, KeyError, TypeError) as error:
        what = f"the endpoint at {client.host} lists no models"
        raise EnvironmentFault("E213", what, fix="name one: --judge-model NAME") from error
    if len(names) != 1:
        there = ", ".join(names[:10]) or "none"
        what = f"the endpoint at {client.host} has {len(names)} models: {there}"
        raise RecipeError("E090", what, fix="name the judge: --judge-model NAME")
    return names[0]


def judge_pairs(
    pairs: Sequence[tuple[Any, str, str]],
    client: ApiClient,
    model: str,
    tell: Tell = lambda *_: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Judgement:
    """Return what a judge says of pairs of a question, our answer and theirs.

    What it said is kept at once, and read again the next time; so an interrupted comparison goes
    on where it stopped, and so does one whose time was up (`ApiClient.within`). Two answers that
    are the same letter for letter are a tie, unasked.
    Raises EnvironmentFault (E213) where the endpoint fails, or stays busy for four requests.
    """
    judge = _Judge(client, model, sleep)
    found, unfinished = [], ""
    for number, (prompt, ours, theirs) in enumerate(pairs):
        tell("judge", number, len(pairs))
        if ours == theirs:
            found.append(JudgedPair(prompt, ours, theirs, (TIE, TIE), ("", "")))
            continue
        question = _as_text(prompt)
        try:
            first = judge.reply(question, ours, theirs)
            second = judge.reply(question, theirs, ours)
        except OutOfTime:
            unfinished = f"{number:,} of {len(pairs):,} questions are judged"
            break
        verdicts = (_read(first, {"A": WON, "B": LOST}), _read(second, {"B": WON, "A": LOST}))
        found.append(JudgedPair(prompt, ours, theirs, verdicts, (first, second)))
    else:
        tell("judge", len(pairs), len(pairs))
    seconds = client.waiting.most if client.waiting else 0.0
    return Judgement(
        client.host, model, found, judge.asked, judge.cached, judge.cut, unfinished, seconds
    )


def _read(reply: str, means: Mapping[str, str]) -> str:
    """Return the verdict of a reply's last mark; '' where it has none."""
    marks = _MARK.findall(reply)
    return means.get(marks[-1].upper(), TIE) if marks else ""


def _as_text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{turn['role']}: {turn.get('content') or ''}" for turn in prompt)


@dataclass
class _Judge:
    client: ApiClient
    model: str
    sleep: Callable[[float], None]
    asked: int = 0
    cached: int = 0
    cut: int = 0
    kept: dict[str, str] = field(init=False)
    path: Path | None = field(init=False)

    def __post_init__(self) -> None:
        self.path = own_lines("judged", f"{self.client.base}\n{self.model}\n{TEMPLATE_SHA256}")
        self.kept = _kept(self.path) if self.path else {}

    def reply(self, question: str, answer_a: str, answer_b: str) -> str:
        """Return what the judge says of two answers in this order."""
        texts = {"question": question, "answer_a": answer_a, "answer_b": answer_b}
        filled = re.sub(
            r"\{(question|answer_a|answer_b)\}",
            lambda found: self._short(texts[found[1]]),
            TEMPLATE,
        )
        key = hashlib.sha256(filled.encode("utf-8", "replace")).hexdigest()
        if key in self.kept:
            self.cached += 1
            return self.kept[key]
        said = self._told(filled)[:LONGEST_REPLY]
        self.asked += 1
        self.kept[key] = said
        if self.path is not None:
            fsio.append_line(self.path, json.dumps({"key": key, "reply": said}))
        return said

    def _short(self, text: str) -> str:
        if len(text) <= LONGEST_TEXT:
            return text
        self.cut += 1
        return text[:LONGEST_TEXT] + " [...]"

    def _told(self, text: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        for wait in (PAUSE * 2**number for number in range(TRIES - 1)):
            try:
                return self._once(body)
            except Unavailable:
                self._pause(wait)
        return self._once(body)

    def _pause(self, seconds: float) -> None:
        """Let a busy server rest; it is waiting for it, too."""
        waiting = self.client.waiting
        self.sleep(min(seconds, waiting.left) if waiting else seconds)
        if waiting:
            waiting.waited += seconds

    def _once(self, body: Mapping[str, Any]) -> str:
        try:
            told = self.client.post("/chat/completions", body)
        except Declined as declined:
            what = f"the endpoint at {self.client.host} does not judge: {declined}"
            fix = "name a chat model that it has: --judge-model NAME"
            raise EnvironmentFault("E213", what, fix=fix) from None
        try:
            said = told["choices"][0]["message"]["content"]
        except (KeyError, TypeError, IndexError):
            said = None
        if isinstance(said, str):
            return said
        what = f"the endpoint at {self.client.host} answers in another form than OpenAI's"
        raise EnvironmentFault("E213", what)


def _kept(path: Path) -> dict[str, str]:
    """Return what is in the file, but for a line that a kill has torn."""
    if not path.exists():
        return {}
    fsio.cut_half_line(path)
    lines = read_own(path, _LARGEST_CACHE).decode("utf-8", "replace").split("\n")
    found = {}
    for line in lines:
        try:
            entry = json.loads(line)
            found[str(entry["key"])] = str(entry["reply"])
        except (ValueError, KeyError, TypeError):
            continue
    return found
