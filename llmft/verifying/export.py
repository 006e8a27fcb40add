"""Does a folder that left a run answer as the run does, and where do the two part?

Each is loaded by code of its own: the run as llmft does, the folder by plain transformers and PEFT.
"""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmft.api import Prompt, SamplingParams
from llmft.api.errors import CheckpointError, DataError, TrustError
from llmft.data.asking import prompt_of
from llmft.data.bounded_tokens import BoundedTokens, check_tokenizer_file
from llmft.data.stage_rows import stage_rows
from llmft.exporting.folders import peft_config
from llmft.exporting.probes import Distance, distance, next_tokens
from llmft.inference.trained import TrainedStage
from llmft.modeling.base_model import loading, max_positions
from llmft.modeling.decoding import decode, stop_ids
from llmft.modeling.folder_checks import check_adapter_folder, check_folder
from llmft.runs.upstream import load_options
from llmft.system import fsio
from llmft.system.bounded_child import BoundedChild, OutOfBounds, WorkFailed
from llmft.system.machine import device

# The largest and the mean difference of log-probabilities, in nats, by what computes them. A half
# precision has 8 or 11 bits, and a logit of 20 is rounded to 0.06 or 0.008; layers add that up.
TOLERANCES = {
    "float32": (1e-3, 1e-4),
    "float16": (0.1, 0.01),
    "bfloat16": (0.5, 0.05),
    "quantised": (1.5, 0.2),
}
_TOP = 64  # where little was learnt, many tokens are about as likely


@dataclass(frozen=True)
class Check:
    """One thing that was compared. allowed: the tolerance, in words."""

    what: str
    compared: str
    found: str
    allowed: str
    fine: bool


@dataclass(frozen=True)
class Parting:
    """Where a prompt's ids or answer differ: the texts as each has them, and why."""

    prompt: int
    what: str
    run: str
    target: str


@dataclass(frozen=True)
class Verdict:
    """What was found. causes: why they part, in words; empty where they do not.

    how: in what way it was asked, line by line. unfinished: what was not compared, and why, in
    words; empty where all was.
    """

    checks: tuple[Check, ...]
    partings: tuple[Parting, ...]
    causes: tuple[str, ...]
    distance: Distance
    how: tuple[str, ...] = ()
    unfinished: str = ""

    @property
    def fine(self) -> bool:
        """Whether what was compared answers as the run does."""
        return all(check.fine for check in self.checks)


@dataclass(frozen=True)
class Answers:
    """One model's answers to the same ids, and its numbers on the run's own answers.

    numbers: as `next_tokens` gives them. top: the likeliest tokens at each place of an answer, and
    their log-probabilities; empty where they are not known.
    """

    dtype: str
    ids: list[list[int]]
    numbers: list[tuple[torch.Tensor, torch.Tensor]]
    top: list[tuple[torch.Tensor, torch.Tensor]]


def verify_export(
    trained: TrainedStage,
    target: Path,
    *,
    prompts: int = 8,
    max_new_tokens: int = 32,
    tolerance: float | None = None,
) -> Verdict:
    """Return how a folder answers held-out prompts beside the run that it was made from.

    target: a model's folder, or that of an adapter as PEFT has it. prompts: how many, from the
    start of the stage's held-out rows, else of its rows. tolerance: for log-probabilities, in nats;
    default: by the data types that compute.
    Raises CheckpointError where the folder is neither, DataError where there are no rows.
    """
    kind = _kind_of(target, trained)
    asked, own_ids = asked_prompts(trained, prompts, max_new_tokens)
    ours = answers_of_run(trained, own_ids, max_new_tokens)
    gc.collect()
    tokenizer = _tokenizer(target)
    theirs = _of_the_target(target, kind, trained, own_ids, ours.ids, max_new_tokens)
    target_ids = _plain_ids(tokenizer, asked)
    quantised = bool(load_options(trained.job.recipe, trained.bound.model_adapter))
    most, mean = tolerances(ours.dtype, theirs.dtype, quantised, tolerance)
    apart = distance(ours.numbers, theirs.numbers)
    partings = [*id_partings(trained.base.tokenizer, own_ids, target_ids)]
    answers = list(answer_partings(trained.base.tokenizer, ours, theirs, most))
    checks = checks_of(len(own_ids), partings, answers, apart, (most, mean))
    close = apart.max_logp <= most and apart.mean_logp <= mean
    causes = [*_causes_of_ids(trained, tokenizer, own_ids, target_ids)]
    causes += _causes_of_numbers(ours.dtype, theirs.dtype, quantised, close=close)
    if close and not checks[1].fine:
        causes.append(_generation_cause(target))
    return Verdict(checks, (*partings, *answers), tuple(causes), apart)


def checks_of(
    count: int,
    partings: Sequence[Parting],
    answers: Sequence[Parting],
    apart: Distance,
    allowed: tuple[float, float],
) -> tuple[Check, ...]:
    """Return the four checks of `count` prompts: ids, answers, and the two differences.

    partings, answers: where ids and answers differ. allowed: the largest and the mean difference.
    """
    most, mean = allowed
    ties = sum(part.what == "a tie" for part in answers)
    told = f"{count - len(answers)} the same" + (f", {ties} part at a tie" if ties else "")
    return (
        Check("token ids in", f"{count} prompts", f"{count - len(partings)} the same", "all",
              not partings),
        Check("greedy answers", f"{count} answers", told, "all, but for ties",
              len(answers) == ties),
        Check("log-probabilities, largest difference", f"{apart.tokens} tokens",
              f"{apart.max_logp:.2e}", f"{most:g}", apart.max_logp <= most),
        Check("log-probabilities, mean difference", f"{apart.tokens} tokens",
              f"{apart.mean_logp:.2e}", f"{mean:g}", apart.mean_logp <= mean),
    )  # fmt: skip


def _kind_of(target: Path, trained: TrainedStage) -> str:
    """Return `adapter` or `model`; raise an LlmftError where it is not safe to load as such."""
    if (target / "adapter_config.json").is_file() and not (target / "config.json").is_file():
        if not (target / "adapter_model.safetensors").is_file():
            what = f"'{target}' holds no adapter_model.safetensors"
            raise CheckpointError("E402", what, fix="name a folder that 'llmft export' made")
        check_adapter_folder(target, peft_config(trained))
        return "adapter"
    if not (target / "config.json").is_file():
        raise CheckpointError(
            "E402",
            f"'{target}' is neither a model's folder nor an adapter's",
            fix="name a folder that 'llmft merge' or 'llmft export' made",
        )
    check_folder(target)
    return "model"


def asked_prompts(
    trained: TrainedStage, prompts: int, max_new_tokens: int
) -> tuple[list[Prompt], list[tuple[int, ...]]]:
    """Return the first held-out prompts of the stage, else those of its rows, and their ids.

    Those that leave no room for an answer are left out; DataError (E105) where all are.
    """
    dataset = trained.dataset
    if dataset is None:
        raise DataError("E105", f"stage '{trained.folder.name}' has no rows to take prompts from")
    train, held_out = stage_rows(
        trained.bound.spec, dataset, trained.job.recipe.seed, lambda: trained.encoder
    )
    rows = held_out.rows if held_out is not None and held_out.rows else train.rows
    asked = [prompt_of(row) for row in rows[:prompts]]
    own_ids = [tuple(trained.encoder.prompt_ids(prompt)) for prompt in asked]
    if limit := max_positions(trained.base.config):
        adapter = trained.bound.model_adapter
        room = limit - (adapter.virtual_tokens() if adapter else 0) - max_new_tokens
        fits = [i for i, ids in enumerate(own_ids) if 0 < len(ids) <= room]
        asked, own_ids = [asked[i] for i in fits], [own_ids[i] for i in fits]
    if not own_ids:
        raise DataError("E105", "no prompt leaves room for an answer", fix="lower --max-new-tokens")
    return asked, own_ids


def answers_of_run(
    trained: TrainedStage, prompts: Sequence[tuple[int, ...]], max_new_tokens: int
) -> Answers:
    """Return what the run itself answers to token ids, as llmft loads it."""
    model = trained.model()
    stops = stop_ids(model, trained.base.tokenizer)
    params = SamplingParams(max_new_tokens, temperature=0.0, stop_token_ids=stops)
    found = decode(model, prompts, params, batch_size=8)
    ids = [answer.ids for answer in found]
    rows = [(*prompt, *answer) for prompt, answer in zip(prompts, ids, strict=True)]
    top = []
    with torch.no_grad():
        for prompt, row in zip(prompts, rows, strict=True):
            logits_TV = model(input_ids=torch.tensor([row], device=_device(model))).logits[0]
            # The logits at a place are of the token after it.
            logps_TV = torch.log_softmax(logits_TV[len(prompt) - 1 : -1].float(), -1)
            best = logps_TV.topk(min(_TOP, logps_TV.shape[1]), dim=-1)
            top.append((best.indices.cpu(), best.values.cpu()))
    return Answers(trained.base.source.dtype, ids, next_tokens(model, rows), top)


def _of_the_target(
    target: Path,
    kind: str,
    trained: TrainedStage,
    prompts: Sequence[tuple[int, ...]],
    answers: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> Answers:
    from transformers import AutoModelForCausalLM

    where: Path | str = target
    dtype: Any = "auto"
    if kind == "adapter":
        where = trained.base.path
        dtype = getattr(torch, trained.base.source.dtype)
    more = {}
    if kind == "adapter" and trained.base.source.rope_scaling:  # likewise
        more["config"] = copy.deepcopy(trained.base.config)
    with loading(str(where)):
        model = AutoModelForCausalLM.from_pretrained(
            where, **more, dtype=dtype, use_safetensors=True, trust_remote_code=False,
            local_files_only=True, revision=trained.base.revision if kind == "adapter" else None,
        )  # fmt: skip
    if kind == "adapter":
        from peft import PeftModel

        if trained.base.source.stop:  # no adapter can say it, and `llmft export` tells
            model.generation_config.eos_token_id = trained.base.answer_ends
        if trained.base.new_tokens:  # the adapter has their rows
            model.resize_token_embeddings(trained.base.vocabulary, mean_resizing=False)
        with loading(str(target)):
            model = PeftModel.from_pretrained(model, target)
    model = model.to(device()).eval()
    _refuse_other_modes(model.generation_config, target)
    pad = model.generation_config.pad_token_id
    found = []
    with torch.no_grad(), loading(str(target)):
        for prompt in prompts:
            ids = torch.tensor([prompt], device=_device(model))
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1,
                max_new_tokens=max_new_tokens, pad_token_id=pad if pad is not None else 0,
            )  # fmt: skip
            # PEFT's soft prompts give back the answer behind the prompt, as others do.
            found.append(out[0, len(prompt) :].tolist())
    rows = [(*prompt, *answer) for prompt, answer in zip(prompts, answers, strict=True)]
    computes = str(next(model.parameters()).dtype).removeprefix("torch.")
    virtual = trained.bound.model_adapter.virtual_tokens() if trained.bound.model_adapter else 0
    numbers = next_tokens(_Cut(model, virtual) if kind == "adapter" and virtual else model, rows)
    return Answers(computes, found, numbers, [])


def _refuse_other_modes(settings: Any, target: Path) -> None:
    """Raise CheckpointError (E407) where a folder asks for more than one token after another.

    transformers fetches the code of some ways to generate from the hub.
    """
    from transformers.generation import GenerationMode

    asked = copy.deepcopy(settings)
    asked.do_sample, asked.num_beams = False, 1
    mode = asked.get_generation_mode()
    if mode != GenerationMode.GREEDY_SEARCH or (asked.num_return_sequences or 1) > 1:
        what = f"'{target / 'generation_config.json'}' asks for another way to generate ({mode})"
        raise CheckpointError("E407", what, fix="export the run again")


class _Cut:
    """PEFT's model without the logits of its virtual tokens, which come first."""

    def __init__(self, model: Any, virtual: int) -> None:
        self.model, self.virtual, self.parameters = model, virtual, model.parameters

    def __call__(self, input_ids: torch.Tensor) -> Any:
        out = self.model(input_ids=input_ids)
        if out.logits.shape[1] > input_ids.shape[1]:
            out.logits = out.logits[:, self.virtual :]
        return out


def _tokenizer(target: Path) -> Any:
    from transformers import AutoTokenizer

    check_tokenizer_file(target / "tokenizer.json")
    with loading(str(target)):
        return AutoTokenizer.from_pretrained(target, trust_remote_code=False, local_files_only=True)


def _plain_ids(tokenizer: Any, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    """Return the ids that whoever serves the folder makes of each prompt, by plain transformers.

    Raises TrustError (E604) where the folder's chat template takes too long or too much, and
    EnvironmentFault (E212) where its tokenizer does.
    """

    def work(turns: list[Any]) -> list[int]:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    child = BoundedChild(work)

    def of_chat(turns: list[Any]) -> tuple[int, ...]:
        try:
            return tuple(child.ask(turns)) if tokenizer.chat_template else ()
        except OutOfBounds as error:
            what = f"the chat template of the folder {error}"
            raise TrustError("E604", what, fix="export the run again") from error
        except WorkFailed:  # it cannot write the prompt: other ids than the run's
            return ()

    tokens = BoundedTokens(tokenizer)
    return [
        tuple(tokens.ids(prompt)) if isinstance(prompt, str) else of_chat(list(prompt))
        for prompt in prompts
    ]


def tolerances(ours: str, theirs: str, quantised: bool, given: float | None) -> tuple[float, float]:
    """Return the largest and the mean difference allowed. ours, theirs: what computes."""
    if given is not None:
        return given, given
    kinds = [ours, theirs, *(["quantised"] if quantised else [])]
    found = [TOLERANCES.get(kind, TOLERANCES["bfloat16"]) for kind in kinds]
    return max(found)


def id_partings(
    tokenizer: Any, ours: Sequence[tuple[int, ...]], theirs: Sequence[tuple[int, ...]]
) -> list[Parting]:
    """Return the prompts whose ids differ."""
    return [
        Parting(number, "token ids in", _some(tokenizer, a), _some(tokenizer, b))
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True))
        if a != b
    ]


def answer_partings(tokenizer: Any, ours: Answers, theirs: Answers, most: float) -> Any:
    """Yield where answers differ; `a tie` where the run finds both tokens as likely.

    most: by how much less likely the other token may be.
    """
    for number, (a, b) in enumerate(zip(ours.ids, theirs.ids, strict=True)):
        if a == b:
            continue
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        what = "the end of the answer"
        if at is not None:
            known = dict(zip(ours.top[number][0][at].tolist(), ours.top[number][1][at].tolist(),
                             strict=True))  # fmt: skip
            near = b[at] in known and known[a[at]] - known[b[at]] <= most
            what = "a tie" if near else f"token {at + 1} of the answer"
        yield Parting(number, what, tokenizer.decode(a), tokenizer.decode(b))


def _causes_of_ids(
    trained: TrainedStage,
    tokenizer: Any,
    ours: Sequence[tuple[int, ...]],
    theirs: Sequence[tuple[int, ...]],
) -> list[str]:
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
    if not pairs:
        return []
    own = trained.base.tokenizer
    if own.chat_template != tokenizer.chat_template and () in theirs:
        return ["template: the folder has no chat template"]
    if own.chat_template != tokenizer.chat_template:
        return ["template: the folder has another chat template than the run"]
    for token in {own.bos_token_id, own.eos_token_id, tokenizer.bos_token_id} - {None}:
        if all(a == (token, *b) or (token, *a) == b for a, b in pairs):
            return [f"BOS: one has a token at the start of each text ({token}), the other has not"]
        if all(a == (*b, token) or (*a, token) == b for a, b in pairs):
            return [f"EOS: one has a token at the end of each prompt ({token}), the other has not"]
    return ["tokenizer: the folder's tokenizer makes other ids of the same text"]


def _causes_of_numbers(ours: str, theirs: str, quantised: bool, *, close: bool) -> list[str]:
    if close:
        return []
    if quantised:
        return ["quantisation: the run's base was quantised, and the folder's is not"]
    if ours != theirs:
        return [f"dtype: the run computes in {ours}, the folder in {theirs}"]
    return ["weights: the folder's weights are not the run's base with its adapter"]


def _generation_cause(target: Path) -> str:
    path = target / "generation_config.json"
    told = fsio.read_json(path, "export the run again") if path.is_file() else {}
    acting = {
        name: value
        for name, value in told.items()
        if name.endswith(("penalty", "_size", "_tokens", "_token_id", "_token", "_length"))
    }
    return (
        "generation: the log-probabilities agree, and the answers do not: the folder's settings of"
        f" generation act ({json.dumps(acting)})"
    )


def _some(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return f"{list(ids[:6])}{'...' if len(ids) > 6 else ''} {tokenizer.decode(list(ids[:24]))!r}"


def _device(model: Any) -> torch.device:
    found: torch.device = next(model.parameters()).device
    return found
