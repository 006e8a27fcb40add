"""What a running stage stands on: its model, rows and tokens, made when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from llmft import artifacts, models
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
from llmft.discovery.given import breach, model_of
from llmft.machine import device, seed_everything
from llmft.notify import Trackers
from llmft.preparing.data import Rows, leave_out, row_digests, stage_rows
from llmft.preparing.encoding import Encoder, EncodingReport
from llmft.preparing.pairs import encode_pairs
from llmft.preparing.prompts import encode_prompts
from llmft.preparing.repeats import repeats
from llmft.recipe import Recipe, Stage
from llmft.registry import Registry
from llmft.saving.earlier import (
    earlier_stage,
    load_options,
    load_stage,
    stage_adapter,
    stage_work,
    twin,
)
from llmft.settings import TrainSettings
from llmft.startup import without_collecting


class StageGround:
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
        self.identity = ""
        self.reads: Mapping[str, str] = {}  # the identity of each stage that this one reads
        self.accept_data = False

    @cached_property
    @without_collecting()
    def model(self) -> Any:
        """The base model with the stage's adapter attached, on the device, ready to train."""
        self.progress("load the model", 0, 1)
        seed_everything(self.seed)
        base = models.load_base(
            self.recipe.model,
            self.load_options,
            varlen=self.adapter is None or self.adapter.supports_packing,
        )
        base = base.to(device()) if not self.load_options else base
        if self.train.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        self._bare = twin(base)
        model = self._attached(base)
        if isinstance(self.work, Alignment):
            self.work.extend(model)
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise breach(self.adapter, "no parameter requires grad: there is nothing to train")
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
        earlier = earlier_stage(self.stage.start_from, self._run_folder, self.recipe)
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
        return models.load_tokenizer(self.recipe.model)

    @cached_property
    def max_length(self) -> int | None:
        """Tokens in a row at most: the recipe's, or what the model's positions leave."""
        positions = models.max_positions(models.load_config(self.recipe.model))
        taken = self.adapter.virtual_tokens() if self.adapter else 0
        left = positions - taken if positions else None
        return self.train.max_length or left

    @cached_property
    def encoder(self) -> Encoder:
        """What turns rows into token ids."""
        return Encoder(self.tokenizer, self.max_length, models.chat_format(self.recipe.model))

    @cached_property
    def _rows(self) -> tuple[Rows, Rows | None]:
        self.progress("read the rows", 0, 1)
        train, judged = stage_rows(self.stage, self.dataset, self.seed)
        for rows in (train, judged):
            if rows is not None and self.dataset.config.on_bad_row == "skip":
                leave_out(rows, self.encoder.refusals(rows.rows), self.dataset)
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
        self._note(report)
        self._refuse_strangers(encoded)
        return encoded

    def encode_pairs(self, rows: Sequence[Row]) -> list[EncodedPair]:
        """Return preference rows as token ids, saying how many were cut or dropped."""
        self.progress("tokenise", 0, len(rows))
        pairs, report = encode_pairs(self.encoder, rows, self.train)
        self._note(report)
        self._refuse_strangers(row for pair in pairs for row in (pair.chosen, pair.rejected))
        return pairs

    def encode_prompts(self, rows: Sequence[Row], max_new_tokens: int) -> list[EncodedPrompt]:
        """Return prompts as token ids that leave room for an answer, saying how many were cut."""
        self.progress("tokenise", 0, len(rows))
        prompts, report = encode_prompts(self.encoder, rows, self.train, max_new_tokens)
        self._note(report)
        self._refuse_strangers(prompts)
        return prompts

    def _note(self, report: EncodingReport) -> None:
        """Tell what a person should know of rows that were made token rows."""
        if note := report.note():
            self.note(note)
        day = self.recipe.model.chat_template_date
        told = f"the chat template writes the day, and is told {day} (model.chat_template_date)"
        if self.encoder.reads_clock and told not in self.notes:
            self.note(told)

    def _refuse_strangers(self, rows: Iterable[Encoded]) -> None:
        """Raise DataError where a row has a token that the model has no embedding for."""
        config = models.load_config(self.recipe.model).get_text_config()
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

    def reference(self) -> AbstractContextManager[Any]:
        """Return a context in which the model, not yet trained, answers as the reference."""
        return nullcontext() if self.stage.start_from else self.adapter.disabled(self.model)

    def stage_folder(self, name: str) -> Path:
        """Return the folder of an earlier stage that is finished."""
        return earlier_stage(name, self._run_folder, self.recipe)

    def load_stage(self, name: str) -> Any:
        """Return a frozen model of an earlier stage on this one's base weights."""
        _ = self.model
        folder = earlier_stage(name, self._run_folder, self.recipe)
        return load_stage(folder, self.registry, twin(self._bare))

    def reference_model(self) -> Any:
        """Return a frozen model, on the same base weights, that answers as the stage's start."""
        _ = self.model
        base = twin(self._bare)
        if self.stage.start_from is not None:
            earlier = earlier_stage(self.stage.start_from, self._run_folder, self.recipe)
            base = self.adapter.load(base, earlier / artifacts.ADAPTER)
        return base.requires_grad_(False).eval()
