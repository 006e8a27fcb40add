"""What a model answered, kept as it comes; and the harness's model class, which asks only once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from llmft.api.errors import TrustError
from llmft.api.shown_text import on_one_line
from llmft.system import fsio
from llmft.system.plain_files import read_bytes

_LARGEST_ANSWERS = 2**31
_GENERATION = {
    "until", "max_gen_toks", "max_new_tokens", "max_length", "do_sample", "temperature", "top_p",
    "top_k", "min_p", "typical_p", "num_beams", "repetition_penalty", "no_repeat_ngram_size",
    "length_penalty", "early_stopping",
}  # fmt: skip
"""generation_kwargs that a task may have; others of `generate` fetch code or other models."""
OnAnswer = Callable[[int, int], None]


class Answers:
    """What the model answered, kept in a file of JSON lines; the harness's own cache is a pickle.

    about: what the model is; a file of another one is begun anew.
    """

    def __init__(self, path: Path | None, about: str, on_answer: OnAnswer) -> None:
        self.about = hashlib.sha256(about.encode()).hexdigest()
        self.on_answer = on_answer
        self.known: dict[str, Any] = {}
        self.asked = self.given = self.done = self.total = 0
        self.file = None
        if path is not None:
            if path.exists():
                self.known = self._read(path)
            if not self.known:
                path.unlink(missing_ok=True)
            self.file = fsio.open_to_append(path)
            if not self.known:
                self._write({"about": self.about})

    def _read(self, path: Path) -> dict[str, Any]:
        """Return the answers in the file, but for a line that a kill has torn."""
        lines = read_bytes(path, _LARGEST_ANSWERS).decode("utf-8", "replace").split("\n")
        if lines[0] != json.dumps({"about": self.about}):
            return {}
        found: dict[str, Any] = {}
        for line in lines[1:]:
            try:
                entry = json.loads(line)
                found[str(entry["key"])] = entry["answer"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        return found

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self.file is not None:
            self.file.write(json.dumps(entry) + "\n")
            self.file.flush()

    def close(self) -> None:
        """End the file."""
        if self.file is not None:
            self.file.close()

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """Keep an answer, as the harness tells its cache."""
        key = _key(kind, request)
        self.done = min(self.done + 1, self.total)
        self.on_answer(self.done, self.total)
        if key is not None and key not in self.known:
            self.asked += 1
            self.known[key] = answer
            self._write({"key": key, "answer": answer})

    def through(self, kind: str, requests: Sequence[Any], ask: Callable[[Any], Any]) -> list[Any]:
        """Return an answer to each request: one that is kept, or what `ask` gives of the others."""
        keys = [_key(kind, one.args) for one in requests]
        missing = [i for i, key in enumerate(keys) if key is None or key not in self.known]
        kept = {i: self.known[key] for i, key in enumerate(keys) if key in self.known}
        self.given += len(kept)
        self.done, self.total = len(kept), len(requests)
        self.on_answer(self.done, self.total)
        new = dict(
            zip(missing, ask([requests[i] for i in missing]) if missing else (), strict=True)
        )
        found = [new[i] if i in new else kept[i] for i in range(len(requests))]
        return [tuple(one) if isinstance(one, list) else one for one in found]


def _key(kind: str, request: Any) -> str | None:
    """Return what an answer is kept by; None where it is drawn, and so another one each time."""
    parts = list(request)
    if kind == "generate_until" and isinstance(parts[-1], Mapping) and _is_drawn(parts[-1]):
        return None
    return hashlib.sha256(json.dumps([kind, *parts], default=str).encode()).hexdigest()


def _is_drawn(settings: Mapping[str, Any]) -> bool:
    """Return whether an answer is drawn, as the harness's normalize_gen_kwargs has it."""
    stated = settings.get("do_sample")
    return bool(settings.get("temperature") if stated is None else stated)


def asked_once(
    model: Any, tokenizer: Any, batch_size: int, max_length: int | None, answers: Answers
) -> Any:
    """Return the harness's own model class around ours, which asks a request only once."""
    import copy

    from lm_eval.models.huggingface import HFLM

    class Ours(HFLM):  # type: ignore[misc]
        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return answers.through(
                "loglikelihood", requests, lambda some: HFLM.loglikelihood(self, some)
            )

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return answers.through(
                "loglikelihood_rolling",
                requests,
                lambda some: HFLM.loglikelihood_rolling(self, some),
            )

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            for one in requests:
                if strange := set(one.args[1]) - _GENERATION:
                    what = f"a task's generation_kwargs have '{on_one_line(min(strange))[:80]}'"
                    raise TrustError(
                        "E607", f"{what}, which no task may set", fix="take it out of the task"
                    )
            return answers.through(
                "generate_until", requests, lambda some: HFLM.generate_until(self, some)
            )

    # The harness ties the weights that it is given, and gives its tokenizer a token to pad with.
    with mock.patch.object(model, "tie_weights", create=True):
        made = Ours(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            backend="causal",
            batch_size=batch_size,
            max_length=max_length,
        )
    made.set_cache_hook(answers)
    return made
