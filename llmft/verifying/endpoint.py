"""Does a running endpoint answer as the run does, and where do the two part?

The endpoint is asked with OpenAI's paths and nothing else: its tokenizer, template and weights are
known by what it answers. What it tells may be anybody's: it is read as data of an expected shape.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmft.api import Prompt
from llmft.api.errors import EnvironmentFault, RecipeError
from llmft.api.rows import Conversation
from llmft.exporting.probes import Distance
from llmft.inference.trained import TrainedStage
from llmft.runs.upstream import load_options
from llmft.system.api_client import ApiClient, Declined, OutOfTime
from llmft.verifying.export import (
    TOLERANCES,
    Answers,
    Check,
    Parting,
    Verdict,
    answer_partings,
    answers_of_run,
    asked_prompts,
    id_partings,
    tolerances,
)

TIMEOUT = 1800.0  # seconds of waiting for an endpoint, all its answers together
_LONGEST_NAME, _SHOWN = 1000, 100  # letters of a model's name, and of those that are told
_LETTERS = 1000  # of a token, at most: what is longer than so many for each is no answer
_FORM = "answers in another form than OpenAI's"


@dataclass(frozen=True)
class _Told:
    """What an endpoint told of one prompt.

    ids_in, ids_out: the token ids of prompt and answer; None where it tells none. count_in: how
    many tokens it counted in the prompt. words, logps: of its answer's tokens.
    """

    text: str
    ended: bool
    ids_in: tuple[int, ...] | None
    ids_out: list[int] | None
    count_in: int | None
    words: list[str]
    logps: list[float | None]


@dataclass
class _Endpoint:
    """An endpoint and a model of it. tells_ids: whether it takes vLLM's `return_token_ids`."""

    client: ApiClient
    model: str
    max_new_tokens: int
    tells_ids: bool = True

    def served(self, prompt: Prompt) -> _Told:
        """Return the answer to a prompt that the endpoint itself turns into token ids."""
        if isinstance(prompt, str):
            return self._asked("/completions", {"prompt": prompt, "logprobs": 1})
        body: dict[str, Any] = {"messages": list(prompt), "logprobs": True}
        if isinstance(prompt, Conversation):
            body |= {"tools": list(prompt.tools)} if prompt.tools else {}
            more = dict(prompt.template_kwargs)
            body |= {"chat_template_kwargs": more} if more else {}
        return self._asked("/chat/completions", body)

    def of_ids(self, ids: Sequence[int]) -> _Told:
        """Return the answer to token ids. Raises Declined where it takes none."""
        return self._asked("/completions", {"prompt": list(ids), "logprobs": 1})

    def logps_of(self, row: Sequence[int]) -> list[float] | None:
        """Return the log-probabilities of a row's tokens but the first; None: it tells none."""
        body = {"model": self.model, "prompt": list(row), "temperature": 0, "echo": True,
                "logprobs": 1}  # fmt: skip
        for count in (0, 1):
            try:
                told = self.client.post("/completions", body | {"max_tokens": count})
            except Declined:
                continue
            with _shape(self.client):
                _, logps = _tokens(told["choices"][0].get("logprobs"))
                found = logps[1 : len(row)]
                whole = len(logps) == len(row) + count and None not in found
                return [float(logp or 0.0) for logp in found] if whole else None
        return None

    def _asked(self, path: str, body: dict[str, Any]) -> _Told:
        whole = {"model": self.model, "temperature": 0, "max_tokens": self.max_new_tokens} | body
        if self.tells_ids:
            try:
                return self._told(self.client.post(path, whole | {"return_token_ids": True}))
            except Declined:
                told = self._told(self.client.post(path, whole))
                self.tells_ids = False  # it was this that it declined
                return told
        return self._told(self.client.post(path, whole))

    def _told(self, told: Any) -> _Told:
        with _shape(self.client):
            choice = told["choices"][0]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            text = "" if text is None else _text(text)[: _LETTERS * (self.max_new_tokens + 1)]
            words, logps = _tokens(choice.get("logprobs"))
            ids_in = choice.get("prompt_token_ids") or told.get("prompt_token_ids")
            return _Told(
                text,
                choice.get("finish_reason") == "stop",
                None if ids_in is None else tuple(map(_whole, ids_in)),
                self._ids_out(choice.get("token_ids")),
                None if not told.get("usage") else _whole(told["usage"]["prompt_tokens"]),
                words,
                logps,
            )

    def _ids_out(self, told: Any) -> list[int] | None:
        """Return an answer's ids: as many as were asked for, and one more where it has more."""
        return None if told is None else [*map(_whole, told[: self.max_new_tokens + 1])]


class _shape:
    """Turns what an answer of another form would raise into EnvironmentFault (E213)."""

    def __init__(self, client: ApiClient) -> None:
        self.client = client

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(
            error, KeyError | IndexError | TypeError | ValueError | AttributeError | OverflowError
        ):
            what = f"the endpoint at {self.client.host} {_FORM}"
            raise EnvironmentFault("E213", what) from error


def verify_endpoint(
    trained: TrainedStage,
    client: ApiClient,
    *,
    model: str | None = None,
    prompts: int = 8,
    max_new_tokens: int = 32,
    tolerance: float | None = None,
    timeout_seconds: float = TIMEOUT,
) -> Verdict:
    """Return how a running endpoint answers held-out prompts beside the run.

    model: as the endpoint calls it; default: the only one, or that of the recipe's name. prompts,
    tolerance: as `verify_export` has them. timeout_seconds: of waiting for the endpoint, all its
    answers together; what was answered until then is compared, and the verdict says that it is
    unfinished.
    Raises EnvironmentFault (E213) where the endpoint cannot be asked, RecipeError (E090) where it
    has no such model.
    """
    client = client.within(timeout_seconds)
    asked, own_ids = asked_prompts(trained, prompts, max_new_tokens)
    wanted, unfinished, named = len(asked), "", ""
    served: list[_Told] = []
    by_ids = None
    try:
        named = _model(client, model, trained.job.recipe.name)
        endpoint = _Endpoint(client, named, max_new_tokens)
        for prompt in asked:
            served.append(endpoint.served(prompt))
        by_ids = _by_ids(endpoint, own_ids)
    except Declined as declined:
        what = f"the endpoint at {client.host} declines what is asked: {declined}"
        raise EnvironmentFault("E213", what) from declined
    except OutOfTime:
        if not served:
            raise _too_slow(client, f"has answered none of {wanted} prompts") from None
        unfinished = f"{len(served)} of {wanted} prompts were answered"
        if len(served) == wanted:
            unfinished = "the prompts were answered as texts, and not all of them as token ids"
    own_ids = own_ids[: len(served)]
    ours = answers_of_run(trained, own_ids, max_new_tokens)
    gc.collect()
    answered = by_ids or served
    apart, whole, told = _distance(trained.base.tokenizer, endpoint, own_ids, ours, answered)
    if told is not None and not unfinished:
        unfinished = f"log-probabilities were told of {told} of {wanted} prompts with their answers"
    quantised = bool(load_options(trained.job.recipe, trained.bound.model_adapter))
    most, mean = tolerances(ours.dtype, ours.dtype, quantised, tolerance)

    exact = all(told.ids_in is not None for told in served)
    partings = _partings_in(trained.base.tokenizer, own_ids, served, exact=exact)
    answers = list(_answers_apart(trained.base.tokenizer, ours, answered, most))
    count, ties = len(own_ids), sum(part.what == "a tie" for part in answers)
    close = apart is not None and apart.max_logp <= most and apart.mean_logp <= mean
    same = f"{count - len(partings)} the same"
    checks = (
        Check("token ids in", f"{count} prompts", same if exact else f"{same} number", "all",
              not partings),
        Check("greedy answers", f"{count} answers",
              f"{count - len(answers)} the same" + (f", {ties} part at a tie" if ties else ""),
              "all, but for ties", len(answers) == ties),
        *(_number_checks(apart, most, mean) if apart or not unfinished else ()),
    )  # fmt: skip
    chat = any(not isinstance(prompt, str) for prompt in asked)
    causes = _causes_in(trained.base.tokenizer, own_ids, served, chat=chat, exact=exact)
    if apart is None and not unfinished:
        causes.append(
            "log-probabilities: the endpoint tells none, so that the weights are unproven"
        )
    elif apart is not None and not close:
        causes.append(_cause_of_numbers(apart, ours.dtype, quantised))
    elif apart is not None and len(answers) > ties and (by_ids or not causes):
        causes.append(
            "generation: the log-probabilities agree, and the answers do not: settings of the"
            " endpoint act, such as repetition_penalty"
        )
    how = (
        f"asked {client.host} as '{named}'",
        "prompts: as token ids" if by_ids else "prompts: as texts, as it takes no token ids",
        "token ids in: as it tells them" if exact
        else "token ids in: counted only, as it does not tell them",
        "log-probabilities: of all tokens of prompts and answers" if whole
        else "log-probabilities: of its own answers, as far as they are the run's",
    )  # fmt: skip
    return Verdict(
        checks, (*partings, *answers), tuple(causes), apart or Distance(0, 0.0, 0.0, None), how,
        unfinished,
    )  # fmt: skip


def _too_slow(client: ApiClient, what: str) -> EnvironmentFault:
    seconds = client.waiting.most if client.waiting else 0.0
    return EnvironmentFault(
        "E213",
        f"the endpoint at {client.host} {what} in {seconds:g} seconds of waiting",
        fix="ask less (--prompts, --max-new-tokens), or wait longer: --timeout SECONDS",
    )


def _model(client: ApiClient, wanted: str | None, recipe: str) -> str:
    """Return the name of the model that is asked."""
    try:
        told = client.get("/models")
    except Declined as declined:
        what = f"the endpoint at {client.host} lists no models: {declined}"
        raise EnvironmentFault(
            "E213", what, fix="give the address as http://host:port/v1"
        ) from None
    with _shape(client):
        names = [_text(one["id"])[:_LONGEST_NAME] for one in told["data"]]
    if wanted is None:
        wanted = names[0] if len(names) == 1 else recipe
    if wanted not in names:
        there = ", ".join(name[:_SHOWN] for name in names[:10]) or "none"
        what = f"the endpoint at {client.host} has no model '{wanted}' (it has: {there})"
        raise RecipeError("E090", what, fix="name one: --model NAME")
    return wanted


def _by_ids(endpoint: _Endpoint, own_ids: Sequence[tuple[int, ...]]) -> list[_Told] | None:
    """Return the answers to token ids; None where the endpoint takes none."""
    try:
        first = endpoint.of_ids(own_ids[0])
    except Declined:
        return None
    if first.count_in not in (None, len(own_ids[0])):
        return None  # it took them for something else
    return [first, *(endpoint.of_ids(ids) for ids in own_ids[1:])]


def _distance(
    tokenizer: Any,
    endpoint: _Endpoint,
    own_ids: Sequence[tuple[int, ...]],
    ours: Answers,
    answered: Sequence[_Told],
) -> tuple[Distance | None, bool, int | None]:
    """Return how far the log-probabilities are apart, and whether of all tokens; None: not told.

    Third, where the time was up: of how many prompts with their answers they were told until then.
    """
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    whole, done = True, None
    for prompt, answer, (own_T, _) in zip(own_ids, ours.ids, ours.numbers, strict=True):
        try:
            logps = endpoint.logps_of([*prompt, *answer])
        except OutOfTime:
            done = len(pairs)
            whole = done > 0
            break
        if logps is None:
            whole = False
            break
        pairs.append((own_T, torch.tensor(logps)))
    if not whole:
        pairs = [
            _aligned(tokenizer, len(prompt), answer, own_T, told)
            for prompt, answer, (own_T, _), told in zip(
                own_ids, ours.ids, ours.numbers, answered, strict=True
            )
        ]
    gaps = torch.cat([(a - b).abs() for a, b in pairs])
    if not len(gaps):
        return None, False, done
    return Distance(len(gaps), float(gaps.max()), float(gaps.mean()), None), whole, done


def _aligned(
    tokenizer: Any, prompt: int, answer: Sequence[int], own_T: torch.Tensor, told: _Told
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both sides' log-probabilities of an answer's tokens, as far as they are the same."""
    count = 0
    for at, (own, logp) in enumerate(zip(answer, told.logps, strict=False)):
        if told.ids_out is not None:
            same = at < len(told.ids_out) and told.ids_out[at] == own
        else:
            same = told.words[at].strip() == tokenizer.decode([own]).strip()
        if not same or logp is None:
            break
        count += 1
    theirs = [float(logp or 0.0) for logp in told.logps[:count]]
    return own_T[prompt - 1 : prompt - 1 + count], torch.tensor(theirs)


def _partings_in(
    tokenizer: Any, own_ids: Sequence[tuple[int, ...]], served: Sequence[_Told], *, exact: bool
) -> list[Parting]:
    if exact:
        return id_partings(tokenizer, own_ids, [told.ids_in or () for told in served])
    return [
        Parting(number, "tokens in, counted", str(len(ids)), str(told.count_in))
        for number, (ids, told) in enumerate(zip(own_ids, served, strict=True))
        if told.count_in != len(ids)
    ]


def _answers_apart(
    tokenizer: Any, ours: Answers, answered: Sequence[_Told], most: float
) -> Iterator[Parting]:
    """Yield where answers differ: by ids where they are told, else by text."""
    if all(told.ids_out is not None for told in answered):
        theirs = []
        for own, told in zip(ours.ids, answered, strict=True):
            found = list(told.ids_out or ())
            # Some do not count the token that ends an answer.
            theirs.append([*own] if told.ended and found == own[:-1] else found)
        yield from answer_partings(tokenizer, ours, Answers("", theirs, [], []), most)
        return
    for number, (own, told) in enumerate(zip(ours.ids, answered, strict=True)):
        text = tokenizer.decode(own, skip_special_tokens=True)
        if text.strip() == told.text.strip():
            continue
        tie = _is_tie(tokenizer, ours, number, told.text, most)
        yield Parting(number, "a tie" if tie else "the answer's text", text, told.text)


def _is_tie(tokenizer: Any, ours: Answers, number: int, theirs: str, most: float) -> bool:
    """Return whether a text leaves the run's answer for a token that the run finds as likely."""

    def goes_on(ids: Sequence[int]) -> bool:
        said = tokenizer.decode(ids, skip_special_tokens=True)
        return theirs.startswith((said, f" {said}"))  # some begin with the space of the first word

    own = ours.ids[number]
    at = next((n for n in range(len(own)) if not goes_on(own[: n + 1])), len(own) - 1)
    likely = dict(zip(*(column[at].tolist() for column in ours.top[number]), strict=True))
    near = [i for i, logp in likely.items() if likely[own[at]] - logp <= most and i != own[at]]
    return any(goes_on([*own[:at], other]) for other in near)


def _number_checks(apart: Distance | None, most: float, mean: float) -> tuple[Check, ...]:
    def check(which: str, found: float, allowed: float) -> Check:
        what = f"log-probabilities, {which} difference"
        if apart is None:
            return Check(what, "0 tokens", "none told", f"{allowed:g}", False)
        fine = found <= allowed
        return Check(what, f"{apart.tokens} tokens", f"{found:.2e}", f"{allowed:g}", fine)

    return (
        check("largest", apart.max_logp if apart else 0.0, most),
        check("mean", apart.mean_logp if apart else 0.0, mean),
    )


def _causes_in(
    tokenizer: Any,
    own_ids: Sequence[tuple[int, ...]],
    served: Sequence[_Told],
    *,
    chat: bool,
    exact: bool,
) -> list[str]:
    kind = (
        "template: the endpoint writes conversations in another way than the run's chat template"
        if chat
        else "tokenizer: the endpoint makes other ids of the same text"
    )
    if not exact:
        counts = {
            (told.count_in or 0) - len(ids) for ids, told in zip(own_ids, served, strict=True)
        }
        if counts == {0}:
            return []
        if counts in ({1}, {-1}):
            words = "more" if counts == {1} else "fewer"
            return [f"BOS: the endpoint reads one token {words} in each prompt"]
        return [kind]
    pairs = [(a, b.ids_in) for a, b in zip(own_ids, served, strict=True) if a != b.ids_in]
    if not pairs:
        return []
    for token in {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}:
        if all(a == (token, *b) or (token, *a) == b for a, b in pairs if b is not None):
            return [f"BOS: one has a token at the start of each text ({token}), the other has not"]
        if all(a == (*b, token) or (*a, token) == b for a, b in pairs if b is not None):
            return [f"EOS: one has a token at the end of each prompt ({token}), the other has not"]
    return [kind]


def _cause_of_numbers(apart: Distance, dtype: str, quantised: bool) -> str:
    if quantised:
        return "quantisation: the run's base was quantised, and the endpoint's is not"
    most, mean = TOLERANCES["bfloat16"]
    if dtype == "float32" and apart.max_logp <= most and apart.mean_logp <= mean:
        return (
            "dtype: the run computes in float32, and the differences are as small as a half"
            " precision's: serve it in float32, or accept it with --tolerance"
        )
    return "weights: the endpoint's weights are not the run's base with its adapter"


def _tokens(told: Any) -> tuple[list[str], list[float | None]]:
    """Return an answer's tokens and their log-probabilities, of either form."""
    if not told:
        return [], []
    if isinstance(content := told.get("content"), list):
        words = [_text(one["token"]) for one in content]
        return words, [_number(one["logprob"]) for one in content]
    words, logps = told["tokens"], told["token_logprobs"]
    if len(words) != len(logps):
        raise ValueError("of other lengths")
    return [*map(_text, words)], [*map(_number, logps)]


def _number(told: Any) -> float | None:
    if told is not None and (type(told) not in (int, float) or not -1e9 < told <= 1e-3):
        raise ValueError("no log-probability")
    return None if told is None else float(told)


def _whole(told: Any) -> int:
    if type(told) is not int or not 0 <= told < 2**31:
        raise ValueError("no token id, and no count of them")
    return told


def _text(told: Any) -> str:
    if not isinstance(told, str):
        raise ValueError("no text")
    return told
