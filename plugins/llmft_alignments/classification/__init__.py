"""Sequence classification: a class for a text, read at its last token."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from llmft.api import (
    Alignment,
    AlignmentConfig,
    DataError,
    EncodedClassification,
    Field,
    Line,
    Refusal,
    Row,
    StageContext,
    StageError,
    StageResult,
    hookimpl,
)
from llmft.toolkit import (
    add_score_head,
    class_logits,
    class_names,
    load_score_head,
    save_classifier,
    why_no_classifier,
    write_json,
)
from llmft_alignments.classification.labels import (
    Classes,
    Target,
    counted,
    counts,
    refuse_misfits,
    target_of,
)
from llmft_alignments.pairs import over_batches

if TYPE_CHECKING:
    import torch

FILE = "classes.json"
SINGLE, MULTI, REGRESSION = (
    "single_label_classification", "multi_label_classification", "regression",
)  # fmt: skip
Names = Annotated[list[Line], Field(min_length=1, max_length=100_000)]
Weight = Annotated[float, Field(ge=0, le=1e6)]


class Classification(Alignment["Classification.Config"]):
    """Sequence classification, as transformers' AutoModelForSequenceClassification computes it.

    A linear head without bias reads the state of a text's last token; the head is trained whole,
    beside the adapter, and saved with it.
    """

    method = "classification"
    rows = ("classification",)
    produces = "classifier"
    own_loss = True
    corpus_metrics = ("macro_f1",)
    value_ranges: ClassVar = {"macro_f1": (0.0, 1.0)}
    greater_is_better: ClassVar = {"accuracy": True, "macro_f1": True, "mae": False}

    class Config(AlignmentConfig):
        """The classes and the loss, by transformers' names."""

        problem_type: Literal[
            "single_label_classification", "multi_label_classification", "regression"
        ] = Field(
            "single_label_classification",
            description="one class a row (cross-entropy); several (binary cross-entropy of each"
            " class); or a number (mean squared error)",
        )
        id2label: Names | None = Field(
            None,
            description="the classes in their order, as a list of names or as {0: name, ...};"
            " default: those of the training rows",
        )
        class_weights: (
            Literal["balanced"] | Annotated[list[Weight], Field(max_length=100_000)] | (None)
        ) = Field(
            None,
            description="the weight of each class in the loss, in their order; balanced: rows /"
            " (classes * rows of the class), so that each class weighs the same in all",
        )

        @field_validator("id2label", mode="before")
        @classmethod
        def _in_order(cls, value: Any) -> Any:
            if isinstance(value, Mapping):
                if sorted(map(str, value)) != sorted(map(str, range(len(value)))):
                    raise ValueError("the numbers of the classes are not 0, 1, 2 and so on")
                value = [value[key] for key in sorted(value, key=int)]
            if isinstance(value, list):
                return [str(one) if type(one) is int else one for one in value]
            return value

        @model_validator(mode="after")
        def _fit_together(self) -> Classification.Config:
            names, kind = self.id2label, self.problem_type
            if names is not None and len(set(names)) < len(names):
                raise ValueError("id2label names a class twice")
            if kind == REGRESSION and names is not None:
                raise ValueError("id2label names classes, and regression predicts a number")
            if kind == SINGLE and names is not None and len(names) < 2:
                raise ValueError("id2label has one class, so there is nothing to choose")
            if self.class_weights is not None and kind != SINGLE:
                raise ValueError("class_weights are read with one class a row only; drop them")
            weights = self.class_weights
            if isinstance(weights, list):
                if not any(weights):
                    raise ValueError("class_weights are all 0, so that nothing is trained")
                if names is None:
                    raise ValueError("class_weights need id2label, which tells their order")
                if len(weights) != len(names):
                    raise ValueError(
                        f"class_weights has {len(weights)} numbers, and there are {len(names)}"
                        " classes"
                    )
            return self

        @property
        def several(self) -> bool:
            """Whether a row may have several classes."""
            return self.problem_type == MULTI

    def __init__(self, config: Classification.Config) -> None:
        super().__init__(config)
        self.names: list[str] | None = config.id2label
        self.held_out: list[ClassItem] = []
        self.pad_token_id: int | None = None

    @property
    def classes(self) -> Classes | None:
        """The classes; None where a number is predicted."""
        if self.config.problem_type == REGRESSION:
            return None
        if self.names is None:
            raise StageError(
                "E300",
                "the classes are those of the training rows, which were not read",
                fix="name them in alignment.id2label",
            )
        return Classes(self.names)

    def smoke_overrides(self) -> Mapping[str, Any]:
        weights = self.config.class_weights
        return {"id2label": None, "class_weights": None if isinstance(weights, list) else weights}

    def check(self, model: Any) -> Iterable[Refusal]:
        if why := why_no_classifier(model.config):
            yield ("method",), why, "take another model, such as Llama, Qwen or GPT-2"

    def prepare(self, context: StageContext) -> None:
        if rows := context.data.rows():
            self._read_classes(rows, context.name)
        elif self.config.id2label is None:  # a plan whose rows cannot be read
            self.names = ["0", "1"]

    def train(self, context: StageContext) -> StageResult:
        rows, held_out = context.data.rows(), context.data.held_out()
        self.prepare(context)
        for some in (rows, held_out):
            refuse_misfits(some, self.classes, several=self.config.several)
        weights = self._weights(rows)
        found = counts(rows, self.classes) if self.classes else {}
        write_json(
            context.folder / FILE,
            {
                "problem_type": self.config.problem_type,
                "classes": [
                    {"class": name, "rows": found.get(number, 0), "weight": weights[number]}
                    for number, name in enumerate(self.classes.names if self.classes else ())
                ],
            },
        )
        items = self._items(context.data.encode_classification(rows))
        self.pad_token_id = padding_for(items, context.models.tokenizer)
        if held_out:
            self.held_out = self._items(context.data.encode_classification(held_out))
        return context.fit(items, ClassificationObjective(self.config, weights))

    def _read_classes(self, rows: Sequence[Row], stage: str) -> None:
        """Take the classes of the training rows, where the recipe names none."""
        if self.config.id2label is not None or self.config.problem_type == REGRESSION:
            return
        self.names = counted(rows)
        if len(self.names) < (1 if self.config.several else 2):
            there = f"every row has the class '{self.names[0]}'" if self.names else "no row has one"
            raise DataError(
                "E105",
                f"stage '{stage}' has no two classes to tell apart: {there}",
                fix="name another column in data.columns.label",
            )

    def _weights(self, rows: Sequence[Row]) -> list[float]:
        """Return the weight of each class."""
        asked, classes = self.config.class_weights, self.classes
        if classes is None:
            return []
        if asked is None or not rows:
            return [1.0] * len(classes)
        if isinstance(asked, list):
            return asked
        found = counts(rows, classes)
        return [len(rows) / (len(classes) * found[n]) if found[n] else 1.0
                for n in range(len(classes))]  # fmt: skip

    def _items(self, rows: Sequence[EncodedClassification]) -> list[ClassItem]:
        classes, several = self.classes, self.config.several
        return [
            ClassItem(
                row.input_ids, row.labels, row.origin, row.label,
                target_of(row.label, classes, several=several),
            )
            for row in rows
        ]  # fmt: skip

    def evaluate(self, context: StageContext) -> Mapping[str, float | Sequence[float]]:
        """Return of the held-out rows the loss, unweighted, and what goes with the problem.

        One class: accuracy, macro_f1. Several: the same, where all of a row's classes must be
        right, and a class is chosen whose probability is above one half. A number: mae.
        """
        from llmft_alignments.classification.measures import macro_f1_values, write_report

        if not self.held_out:
            return {}
        model, kind = context.models.model, self.config.problem_type
        logits_PC = over_batches(
            context, self.held_out, lambda some: class_logits(model, some), "classify rows"
        )
        loss_P = losses(kind, logits_PC, self.held_out).double()
        metrics: dict[str, float | Sequence[float]] = {"loss": loss_P.tolist()}
        if kind == REGRESSION:
            wanted_P = logits_PC.new_tensor([item.target for item in self.held_out])
            metrics["mae"] = (logits_PC[:, 0] - wanted_P).abs().double().tolist()
            return metrics
        chosen_PC = chosen(kind, logits_PC)
        right_PC = one_hot(kind, logits_PC, self.held_out).bool()
        metrics["accuracy"] = (chosen_PC == right_PC).all(1).double().tolist()
        metrics["macro_f1"] = macro_f1_values(chosen_PC, right_PC)
        assert self.names is not None
        write_report(context.folder, self.names, chosen_PC, right_PC)
        return metrics

    def recall(self, folder: Path) -> None:
        if self.names is None and self.config.problem_type != REGRESSION:
            told = json.loads((folder / FILE).read_text("utf-8"))
            self.names = [one["class"] for one in told["classes"]]

    def extend(self, model: Any) -> None:
        outputs = len(self.classes) if self.classes else 1
        # As transformers' own classifiers begin.
        add_score_head(model, outputs, getattr(model.config, "initializer_range", 0.02))

    def save(self, model: Any, folder: Path) -> None:
        names = self.names if self.names is not None else ["LABEL_0"]  # as transformers has it
        save_classifier(model, folder, names, self.config.problem_type, self.pad_token_id)

    def load(self, model: Any, folder: Path) -> None:
        if self.config.problem_type != REGRESSION:
            self.names = class_names(folder)
        load_score_head(model, folder)


@dataclass(frozen=True, slots=True)
class ClassItem(EncodedClassification):
    """A row to classify. target: its class's number, the numbers of several, or the number."""

    target: Target = 0


class ClassificationObjective:
    """The loss of transformers' sequence classifiers; a step's loss is its mean over the rows.

    With class weights it is the weighted mean, as torch's cross-entropy has it.
    """

    def __init__(self, config: Classification.Config, weights: Sequence[float]) -> None:
        self.kind, self.weights = config.problem_type, list(weights)
        self.weighted = config.class_weights is not None

    def weight(self, batch: Sequence[ClassItem]) -> float:
        return sum(self._weight(item) for item in batch)

    def loss(
        self, model: Any, batch: Sequence[ClassItem]
    ) -> tuple[torch.Tensor, Mapping[str, Any]]:
        logits_BC = class_logits(model, batch)
        loss_B = losses(self.kind, logits_BC, batch)
        if self.weighted:
            loss_B = loss_B * loss_B.new_tensor([self._weight(item) for item in batch])
        told: dict[str, Any] = {"tokens": float(sum(len(item.input_ids) for item in batch))}
        if self.kind != REGRESSION:
            right_BC = one_hot(self.kind, logits_BC, batch).bool()
            right_B = (chosen(self.kind, logits_BC.detach()) == right_BC).all(1)
            told["accuracy"] = (right_B.float().sum(), float(len(batch)))
        return loss_B.sum(), told

    def _weight(self, item: ClassItem) -> float:
        return self.weights[item.target] if self.weighted and type(item.target) is int else 1.0


def losses(kind: str, logits_BC: torch.Tensor, batch: Sequence[ClassItem]) -> torch.Tensor:
    """Return the loss of each row, shape (B,), in nats, or squared units where a number is wanted.

    kind: transformers' problem_type. Of several classes it is the mean over the classes.
    """
    import torch.nn.functional as F

    if kind == SINGLE:
        target_B = logits_BC.new_tensor([item.target for item in batch]).long()
        return F.cross_entropy(logits_BC, target_B, reduction="none")
    if kind == MULTI:
        wanted_BC = one_hot(kind, logits_BC, batch)
        of_class = F.binary_cross_entropy_with_logits(logits_BC, wanted_BC, reduction="none")
        return of_class.mean(1)
    wanted_B = logits_BC.new_tensor([item.target for item in batch])
    return F.mse_loss(logits_BC[:, 0], wanted_B, reduction="none")


def one_hot(kind: str, logits_BC: torch.Tensor, batch: Sequence[ClassItem]) -> torch.Tensor:
    """Return 1 for each of a row's classes, else 0, shape (B, C)."""
    wide = logits_BC.shape[1]
    lines = []
    for item in batch:
        numbers = item.target if isinstance(item.target, tuple) else (item.target,)
        lines.append([float(number in numbers) for number in range(wide)])
    return logits_BC.new_tensor(lines)


def chosen(kind: str, logits_BC: torch.Tensor) -> torch.Tensor:
    """Return which classes are chosen, shape (B, C), bool."""
    import torch

    if kind == MULTI:
        return logits_BC > 0
    best_B1 = logits_BC.argmax(1, keepdim=True)
    return torch.zeros_like(logits_BC, dtype=torch.bool).scatter(1, best_B1, True)


def padding_for(items: Sequence[ClassItem], tokenizer: Any) -> int | None:
    """Return the id that transformers is to take as padding: a token at which no row ends.

    It reads the last token of a text that is no padding, which would be another one else.
    """
    named = ("pad_token_id", "unk_token_id", "eos_token_id", "bos_token_id")
    last = {item.input_ids[-1] for item in items}
    known = [getattr(tokenizer, name, None) for name in named]
    every = [*known, *getattr(tokenizer, "all_special_ids", ())]
    return next((int(one) for one in every if one is not None and one not in last), None)


@hookimpl
def llmft_alignments() -> list[type[Classification]]:
    return [Classification]
