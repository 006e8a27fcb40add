"""Does a GGUF file answer as the run does? It is loaded by llama.cpp, through llama-cpp-python.

The prompts go the way that llama.cpp's server takes: the file's own chat template, the file's own
tokenizer, and a BOS where the file says so and the template has not written it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from llmft.api import Prompt
from llmft.api.errors import CheckpointError, EnvironmentFault, TrustError
from llmft.exporting.probes import distance
from llmft.inference.trained import TrainedStage
from llmft.runs.upstream import load_options
from llmft.system.bounded_child import BoundedChild, OutOfBounds, WorkFailed
from llmft.system.plain_files import open_to_read
from llmft.system.processes import start_python
from llmft.verifying.export import (
    TOLERANCES,
    Answers,
    Verdict,
    answer_partings,
    answers_of_run,
    asked_prompts,
    checks_of,
    id_partings,
)

PACKAGE = "llama_cpp"
# The largest and the mean difference of log-probabilities, in nats, by llama.cpp's types: 1.5 to 3
# times what was seen (F16: 4 and 8 times) of a model of 15 million parameters, on 853 tokens of
# stories, and of one of 135 million, on 203 and, as Q4_K_M against its run, on 144. BF16 and the IQ
# types were not measured. llama.cpp holds keys and values in float16 also where weights are in
# float32.
GGUF_TOLERANCES = {
    "F32": (0.1, 0.01), "F16": (0.1, 0.01), "BF16": (0.5, 0.05), "Q8_0": (2.0, 0.15),
    "Q6": (2.0, 0.25), "Q5": (4.0, 0.5), "Q4": (12.0, 0.7), "IQ4": (12.0, 0.7),
    "Q3": (12.0, 1.0), "IQ3": (12.0, 1.0),
}  # fmt: skip
_LOWEST = (12.0, 1.5)
_TIE = 4.0  # times the mean difference: the largest is that of tokens that no answer has


class _Runtime:
    """A GGUF file in llama.cpp, in a process of its own."""

    def __init__(self, file: Path, context: int) -> None:
        self.file = file
        self.process = start_python(
            "llmft.verifying.gguf_child", str(file.absolute()), str(context)
        )
        self.facts = self._answer()

    def ask(self, question: dict[str, Any]) -> Any:
        """Return the answer; CheckpointError (E402) where llama.cpp ended."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it has ended, which reading tells
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith("\n"):
            code = self.process.wait()
            how = f"signal {-code}" if code < 0 else f"code {code}"
            raise CheckpointError(
                "E402",
                f"llama.cpp cannot use '{self.file}': it ended with {how}",
                fix="export the run again; a newer llama-cpp-python may know the architecture",
            )
        return json.loads(line)


@contextmanager
def _runtime(file: Path, context: int) -> Iterator[_Runtime]:
    runtime = _Runtime(file, context)
    try:
        yield runtime
    finally:
        runtime.close()


def gguf_file(target: Path) -> Path | None:
    """Return the GGUF file that a target is or holds; None where it is something else.

    Raises CheckpointError (E402) where a folder holds several.
    """
    if target.suffix == ".gguf":
        return target
    found = sorted(target.glob("*.gguf")) if target.is_dir() else []
    if len(found) > 1:
        what = f"'{target}' holds {len(found)} GGUF files"
        raise CheckpointError("E402", what, fix=f"name one: {found[0]}")
    return found[0] if found else None


def verify_gguf(
    trained: TrainedStage,
    file: Path,
    *,
    prompts: int = 8,
    max_new_tokens: int = 32,
    tolerance: float | None = None,
) -> Verdict:
    """Return how a GGUF file answers held-out prompts beside the run that it was made from.

    prompts, max_new_tokens, tolerance: as `verify_export` has them; by default by the file's type.
    Raises EnvironmentFault (E206) where llama-cpp-python is not installed, CheckpointError (E402)
    where the file is none, or llama.cpp cannot use it.
    """
    _refuse_other_files(file)
    if find_spec(PACKAGE) is None:
        what = "llama.cpp, which loads a GGUF file, is not installed"
        raise EnvironmentFault("E206", what, fix="pip install llama-cpp-python")
    asked, own_ids = asked_prompts(trained, prompts, max_new_tokens)
    ours = answers_of_run(trained, own_ids, max_new_tokens)
    rows = [(*prompt, *answer) for prompt, answer in zip(own_ids, ours.ids, strict=True)]
    # One more than the longest: llama.cpp refuses a full context.
    context = max(len(prompt) for prompt in own_ids) + max_new_tokens + 8
    with _runtime(file, context) as runtime:
        facts = runtime.facts
        if facts["vocabulary"] <= max(max(row) for row in rows):
            what = f"'{file}' has {facts['vocabulary']} tokens, fewer than the run's model"
            raise CheckpointError("E407", what, fix="export the run again")
        ids_in = _ids_of(runtime, trained, asked)
        answered = runtime.ask({"prompts": own_ids, "max_new_tokens": max_new_tokens})
        numbers = [
            (torch.tensor(logps, dtype=torch.float32), torch.tensor(best))
            for logps, best in runtime.ask({"rows": rows})
        ]
    theirs = Answers(facts["type"], answered, numbers, [])
    quantised = bool(load_options(trained.job.recipe, trained.bound.model_adapter))
    most, mean = _tolerances(ours.dtype, facts["type"], quantised, tolerance)
    apart = distance(ours.numbers, theirs.numbers)
    tokenizer = trained.base.tokenizer
    partings = id_partings(tokenizer, own_ids, ids_in)
    tie = most if tolerance is not None else min(most, _TIE * mean)
    answers = list(answer_partings(tokenizer, ours, theirs, tie))
    close = apart.max_logp <= most and apart.mean_logp <= mean
    causes = [*_causes_of_ids(trained, facts, own_ids, ids_in)]
    if not close:
        causes.append(_cause_of_numbers(ours.dtype, facts["type"], quantised))
    checks = checks_of(len(own_ids), partings, answers, apart, (most, mean))
    if close and not checks[1].fine:
        causes.append(
            "generation: the log-probabilities agree, and the answers do not: the file ends an"
            " answer at other tokens than the run"
        )
    how = (
        f"loaded by llama.cpp (llama-cpp-python {facts['version']}): type {facts['type']},"
        f" architecture {facts['architecture']}",
        "a BOS before each text: " + ("yes" if facts["adds_bos"] else "no"),
    )
    return Verdict(checks, (*partings, *answers), tuple(causes), apart, how)


def _refuse_other_files(file: Path) -> None:
    import os

    try:
        handle = open_to_read(file)
    except OSError as error:
        what = f"'{file}' cannot be read: {error.strerror or error}"
        raise CheckpointError("E402", what, fix="name a file that 'llmft export' made") from error
    with os.fdopen(handle, "rb") as opened:
        if opened.read(4) != b"GGUF":
            what = f"'{file}' is no GGUF file"
            raise CheckpointError("E402", what, fix="name a file that 'llmft export' made")


def _tolerances(ours: str, kind: str, quantised: bool, given: float | None) -> tuple[float, float]:
    """Return the largest and the mean difference allowed. kind: llama.cpp's type of the file."""
    if given is not None:
        return given, given
    family = kind if kind in GGUF_TOLERANCES else kind.partition("_")[0]
    found = [GGUF_TOLERANCES.get(family, _LOWEST), TOLERANCES.get(ours, TOLERANCES["bfloat16"])]
    return max([*found, *([TOLERANCES["quantised"]] if quantised else [])])


def _ids_of(
    runtime: _Runtime, trained: TrainedStage, prompts: Sequence[Prompt]
) -> list[tuple[int, ...]]:
    """Return the ids that llama.cpp's server makes of each prompt; () where it cannot write one."""
    template = runtime.facts["template"]
    tokenizer = copy.copy(trained.base.tokenizer)
    tokenizer.chat_template = template or None
    kwargs = dict(trained.base.source.chat_template_kwargs)
    bos = tokenizer.bos_token if runtime.facts["adds_bos"] else None

    def work(turns: list[Any]) -> str:
        text: str = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=False, **kwargs
        )
        return text

    child = BoundedChild(work)
    texts: list[list[Any]] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            texts.append([prompt, True])
            continue
        try:
            text = child.ask(list(prompt)) if template else None
        except OutOfBounds as error:
            what = f"the chat template of the file {error}"
            raise TrustError("E604", what, fix="export the run again") from error
        except WorkFailed:  # it cannot write the prompt: other ids than the run's
            text = None
        texts.append(["" if text is None else text.removeprefix(bos or ""), text is not None])
    return [tuple(ids) for ids in runtime.ask({"tokenize": texts})]


def _causes_of_ids(
    trained: TrainedStage,
    facts: dict[str, Any],
    ours: Sequence[tuple[int, ...]],
    theirs: Sequence[tuple[int, ...]],
) -> list[str]:
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
    if not pairs:
        return []
    if () in theirs and not facts["template"]:
        return ["template: the file has no chat template"]
    bos = facts["bos"]
    if all(a == (bos, *b) or (bos, *a) == b for a, b in pairs):
        return [f"BOS: one has a token at the start of each text ({bos}), the other has not"]
    own = trained.base.tokenizer.chat_template
    if own and facts["template"] and own != facts["template"]:
        return ["template: the file has another chat template than the run"]
    return ["tokenizer: llama.cpp makes other ids of the same text"]


def _cause_of_numbers(ours: str, kind: str, quantised: bool) -> str:
    if quantised:
        return "quantisation: the run's base was quantised, and the file was made of the full one"
    if kind in ("F32", "F16", "BF16"):
        return (
            f"weights: the run computes in {ours}, the file in {kind}, and they are further apart"
        )
    return f"quantisation: the file's weights are of the type {kind}; take one of more bits"
