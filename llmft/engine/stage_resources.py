"""What a running stage stands on: its model, rows and tokens, made when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from llmft.api import (
    Alignment,
    DataError,
    Encoded,
    EncodedPair,
    EncodedPrompt,
    Progress,
    RewardConfig,
    RewardFunction,
    Row,
)
from llmft.api.settings import TrainSettings
from llmft.data.duplicates import repeats
from llmft.data.encoding import Encoder
from llmft.data.pair_encoding import encode_pairs
from llmft.data.prompt_encoding import encode_prompts
from llmft.data.stage_rows import Rows, row_digests, stage_rows
from llmft.engine.trackers import Trackers
from llmft.modeling import base_model
from llmft.modeling.levers import levers_of
from llmft.recipes.recipe import Recipe, Stage
from llmft.registry.registry import Registry
from llmft.registry.return_checks import model_of, violation
from llmft.runs import artifacts
from llmft.runs.upstream import (
    load_options,
    load_stage,
    stage_adapter,
    stage_work,
    twin,
    upstream_stage,
)
from llmft.system.machine import device, seed_everything
from llmft.system.startup import without_collecting


class StageResources:
    """The part of the StageContext of `llmft.api` that is there before anything is trained."""

    def __init__(
        self,
        recipe: Recipe,
        stage: Stage,
        *,
        folder: Path,
        dataset: Any,
        registry: Registry,
        trackers: Trackers,
        tell: Callable[[str], None] = lambda at: None,
    ) -> None:
        self.recipe, self.stage = recipe, stage
        self.name, self.folder = stage.name, folder
        # An Adapter; None for a task on the base.
        self.adapter: Any = stage_adapter(recipe, stage, registry)
        self.work = stage_work(stage, registry)
        self.dataset: Any = dataset  # a Dataset; None for a task that reads none
        self.registry, self.trackers, self._tell = registry, trackers, tell
        self.seed = recipe.seed
        self.train: TrainSettings = stage.train
        self.samples: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._when = "before"
        self.fingerprint = ""
        self.reads: Mapping[str, str] = {}  # the identity of each stage that this one reads
        self.accept_data = False

    @cached_property
    @without_collecting()
    def model(self) -> Any:
        """The base model with the stage's adapter attached, on the device, ready to train."""
        from llmft.modeling.precision import train_in_float32

        self.progress("load the model", 0, 1)
        seed_everything(self.seed)
        base = base_model.load_base(
            self.recipe.model,
            self.load_options,
            varlen=self.adapter is None or self.adapter.supports_packing,
        )
        base = base.to(device()) if not self.load_options else base
        base_model.refuse_not_finite(base, self.recipe.model)
        if remark := levers_of(base).remark(base.config.model_type):
            self.note(remark)
        if self.train.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        self._bare = twin(base)
        model = self._attached(base)
        if isinstance(self.work, Alignment):
            self.work.extend(model)
            train_in_float32(model)
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise violation(
                    self.adapter, "no parameter requires grad: there is nothing to train"
                )
        else:
            model = model.requires_grad_(False).eval()
        self.progress("load the model", 1, 1)
        return model

    def _attached(self, base: Any) -> Any:
        seed_everything(self.seed)
        if self.stage.start_from is None:
            if self.adapter is None:
                return base
            return model_of(self.adapter, "attach", self.adapter.attach(base))
        earlier = upstream_stage(self.stage.start_from, self._run_folder, self.recipe)
        loaded = self.adapter.load(base, earlier / artifacts.ADAPTER)
        return model_of(self.adapter, "load", loaded)

    @property
    def _run_folder(self) -> Path:
        return self.folder.parent.parent

    @property
    def load_options(self) -> dict[str, Any]:
        """How the base is quantised, in BitsAndBytesConfig's names; empty where it is not."""
        return load_options(self.recipe, self.adapter)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return base_model.load_tokenizer(self.recipe.model)

    @cached_property
    def max_length(self) -> int | None:
        """Tokens in a row at most: the recipe's, or what the model's positions leave."""
        positions = base_model.max_positions(base_model.load_config(self.recipe.model))
        taken = self.adapter.virtual_tokens() if self.adapter else 0
        left = positions - taken if positions else None
        return self.train.max_length or left

    @cached_property
    def encoder(self) -> Encoder:
        """What turns rows into token ids."""
        return Encoder(self.tokenizer, self.max_length)

    @cached_property
    def _rows(self) -> tuple[Rows, Rows | None]:
        self.progress("read the rows", 0, 1)
        train, judged = stage_rows(self.stage, self.dataset, self.seed)
        for rows in (train, judged):
            if rows is not None and (note := rows.note()):
                self.note(note)
        if note := repeats(train.rows, judged.rows if judged else ()):
            self.note(note)
        return train, judged

    def rows(self) -> Sequence[Row]:
        """Return the training rows."""
        return self._rows[0].rows

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the rows that are used, for the lock."""
        if self.dataset is None:
            return {}
        return row_digests(*self._rows)

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Return rows as token ids, saying how many were cut or dropped."""
        self.progress("tokenise", 0, len(rows))
        encoded, report = self.encoder.encode(rows, self.train)
        if note := report.note():
            self.note(note)
        self._refuse_unknown_tokens(encoded)
        return encoded

    def encode_pairs(self, rows: Sequence[Row]) -> list[EncodedPair]:
        """Return preference rows as token ids, saying how many were cut or dropped."""
        self.progress("tokenise", 0, len(rows))
        pairs, report = encode_pairs(self.encoder, rows, self.train)
        if note := report.note():
            self.note(note)
        self._refuse_unknown_tokens(row for pair in pairs for row in (pair.chosen, pair.rejected))
        return pairs

    def encode_prompts(self, rows: Sequence[Row], max_new_tokens: int) -> list[EncodedPrompt]:
        """Return prompts as token ids that leave room for an answer, saying how many were cut."""
        self.progress("tokenise", 0, len(rows))
        prompts, report = encode_prompts(self.encoder, rows, self.train, max_new_tokens)
        if note := report.note():
            self.note(note)
        self._refuse_unknown_tokens(prompts)
        return prompts

    def _refuse_unknown_tokens(self, rows: Iterable[Encoded]) -> None:
        """Raise DataError where a row has a token that the model has no embedding for."""
        config = base_model.load_config(self.recipe.model).get_text_config()
        words = getattr(config, "vocab_size", None)
        for row in rows:
            if words and max(row.input_ids, default=0) >= words:
                raise DataError(
                    "E114",
                    f"{row.origin}: the tokenizer gives the id {max(row.input_ids)}, and the model"
                    f" has {words} tokens",
                    fix="give the tokenizer that belongs to the model as model.tokenizer",
                )

    @property
    def shares_prompts(self) -> bool:
        """Whether `label_nll` may compute a prompt once for two answers."""
        shares: bool = self.adapter.supports_shared_prompt
        return shares

    def progress(self, phase: str, done: int, total: int) -> None:
        """Tell how far a phase has come: the engine's, or one of the method's own."""
        self.trackers.progress(Progress(self.name, phase, done, total))

    def reward_function(self, config: RewardConfig) -> RewardFunction[Any]:
        """Return the reward function of a block in the method's own settings."""
        made: RewardFunction[Any] = self.registry.method("reward", config.method)(config)
        return made

    def note(self, text: str) -> None:
        """Tell the trackers a remark that a person should read."""
        self.notes.append(text)
        self.trackers.note(f"{self.name}: {text}")

    def held_out(self) -> Sequence[Row]:
        """Return the rows the stage is judged on; none where the recipe does not evaluate."""
        judged = self._rows[1]
        return judged.rows if judged else ()

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """Return a context in which the model, not yet trained, answers as the reference."""
        off = nullcontext() if self.stage.start_from else self.adapter.disabled(self.model)
        with off, self.precision():
            yield self.model

    @property
    def starts_as_reference(self) -> bool:
        """Whether the model, not yet trained, must answer as the reference does."""
        return self.stage.start_from is not None or bool(self.adapter.starts_as_base())

    def precision(self) -> AbstractContextManager[Any]:
        """Return a context in which the model computes as in a training step."""
        import torch

        return torch.autocast(torch.device(device()).type, torch.bfloat16, enabled=self.train.bf16)

    def stage_folder(self, name: str) -> Path:
        """Return the folder of an earlier stage that is finished."""
        return upstream_stage(name, self._run_folder, self.recipe)

    def load_stage(self, name: str) -> Any:
        """Return a frozen model of an earlier stage on this one's base weights."""
        _ = self.model
        folder = upstream_stage(name, self._run_folder, self.recipe)
        return load_stage(folder, self.registry, twin(self._bare))

    def reference_model(self) -> Any:
        """Return a frozen model, on the same base weights, that answers as the stage's start."""
        _ = self.model
        base = twin(self._bare)
        if self.stage.start_from is not None:
            earlier = upstream_stage(self.stage.start_from, self._run_folder, self.recipe)
            base = self.adapter.load(base, earlier / artifacts.ADAPTER)
        return base.requires_grad_(False).eval()
