"""The contract kit fails on methods that break the contract, and on these only."""

from __future__ import annotations

import copy
import json
import random
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ConfigDict
from safetensors.torch import load_file, save_file
from torch import nn

from llmft.api import (
    Adapter,
    AdapterConfig,
    Alignment,
    AlignmentConfig,
    CompletionRow,
    DataError,
    Dataset,
    DatasetConfig,
    Field,
    PreferenceRow,
    PromptRow,
    RewardConfig,
    RewardFunction,
    StageResult,
    Task,
    TaskConfig,
    Tracker,
    TrackerConfig,
)
from llmft.testing import (
    AdapterContract,
    AlignmentContract,
    DatasetContract,
    RewardContract,
    TaskContract,
    TrackerContract,
    measures,
    tiny_gpt2,
    tiny_llama,
    tiny_model_folder,
    tiny_tokenizer,
)

Failure = (AssertionError, pytest.fail.Exception)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with measures.one_thread():
        yield


# --- adapters --------------------------------------------------------------------------------


class ShiftConfig(AdapterConfig):
    """Settings of the smallest adapter there is."""

    scale: float = Field(1.0, gt=0, le=10, description="what the shift is multiplied with")


class Shift(Adapter[ShiftConfig]):
    """Adds a learnt vector to the logits; right in all that the contract asks."""

    method = "shift"
    Config = ShiftConfig
    mergeable = False
    supports_packing = True

    def attach(self, model: Any) -> Any:
        model.requires_grad_(False)
        head = model.get_output_embeddings()
        model.shift = nn.Parameter(0.01 * torch.randn(model.config.vocab_size))
        model.shift_on = True
        head.register_forward_hook(
            lambda _m, _i, out: out + self.config.scale * model.shift if model.shift_on else out
        )
        return model

    def save(self, model: Any, folder: Path) -> None:
        save_file({"shift": model.shift.detach().clone()}, folder / "shift.safetensors")

    def load(self, model: Any, folder: Path) -> Any:
        model = self.attach(model)
        model.shift.data.copy_(load_file(folder / "shift.safetensors")["shift"])
        return model

    @contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        model.shift_on = False
        try:
            yield
        finally:
            model.shift_on = True


class TestShift(AdapterContract):
    method_class = Shift
    configs = [{}, {"scale": 2.0}]


class TrainsTheBase(Shift):
    """Leaves a weight of the base trainable."""

    def attach(self, model: Any) -> Any:
        model = super().attach(model)
        model.get_input_embeddings().weight.requires_grad_(True)
        return model


class TrainsNothing(Shift):
    """Freezes itself."""

    def attach(self, model: Any) -> Any:
        return super().attach(model).requires_grad_(False)


class MovesTheBase(Shift):
    """Changes the base's weights where nobody looks: by a hook in the forward pass."""

    def attach(self, model: Any) -> Any:
        model = super().attach(model)
        weight = model.get_input_embeddings().weight

        def move(module: Any, inputs: Any) -> None:
            if module.training:
                weight.data.mul_(1.001)

        model.register_forward_pre_hook(move)
        return model


class SavesTheBase(Shift):
    """Writes every weight there is."""

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        weights = {name: t.clone() for name, t in model.state_dict().items()}
        save_file(weights, folder / "all.safetensors")


class SavesAPickle(Shift):
    """Writes with torch.save, under an innocent name."""

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        torch.save({"shift": model.shift.data}, folder / "state.json")


class SavesABin(Shift):
    """Writes a file of a kind that nobody should load."""

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        (folder / "adapter_model.bin").write_bytes(b"weights")


class SavesTooMuch(Shift):
    """Writes more than it has: its state from before as well."""

    def save(self, model: Any, folder: Path) -> None:
        shift = model.shift.detach()
        old = {"old": shift * 0, "older": shift * 2}
        save_file({"shift": shift.clone(), **old}, folder / "shift.safetensors")


class SavesNothing(Shift):
    """Forgets to save."""

    def save(self, model: Any, folder: Path) -> None:
        pass


class NeverDisabled(Shift):
    """Lies when it says that it is off."""

    def disabled(self, model: Any) -> Any:
        return nullcontext()


class StaysDisabled(Shift):
    """Does not come back."""

    def disabled(self, model: Any) -> Any:
        model.shift_on = False
        return nullcontext()


class StaysDisabledAfterAnError(Shift):
    """Comes back only where nothing went wrong."""

    @contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        model.shift_on = False
        yield
        model.shift_on = True


class LoadsRoughly(Shift):
    """Loses digits on the way."""

    def load(self, model: Any, folder: Path) -> Any:
        model = super().load(model, folder)
        model.shift.data.copy_(model.shift.data.half().float())
        return model


class LoadsFrozen(Shift):
    """Loads something that cannot be trained further."""

    def load(self, model: Any, folder: Path) -> Any:
        model = super().load(model, folder)
        model.shift.requires_grad_(False)
        return model


class ThrowsItsOwnDice(Shift):
    """Takes its start from a generator that no recipe seeds."""

    def attach(self, model: Any) -> Any:
        model = super().attach(model)
        generator = torch.Generator()
        generator.seed()
        model.shift.data.normal_(generator=generator)
        return model


class MergesNothing(Shift):
    """Calls itself mergeable and returns the base."""

    mergeable = True

    def merge(self, model: Any) -> Any:
        return tiny_llama()


class MergesHalfWay(Shift):
    """Calls itself mergeable and returns the model as it is."""

    mergeable = True

    def merge(self, model: Any) -> Any:
        return model


class MergesInSecret(Shift):
    """Merges although it says that it cannot."""

    def merge(self, model: Any) -> Any:
        return model


class HasADeadPart(Shift):
    """Has a parameter that no loss reaches."""

    def attach(self, model: Any) -> Any:
        model = super().attach(model)
        model.dead = nn.Parameter(torch.zeros(3))
        return model


class LosesGradients(Shift):
    """Gives other gradients under gradient checkpointing."""

    def attach(self, model: Any) -> Any:
        model = super().attach(model)
        if model.is_gradient_checkpointing:
            model.shift.register_hook(lambda gradient: gradient * 2)
        return model


class FitsNoModel(Shift):
    """Refuses every model."""

    def check(self, model: Any) -> Iterator[tuple[str, str, str]]:
        yield "scale", "no model will do", "none"


class LooseConfig(AdapterConfig):
    """Settings that let anything pass, and can be changed."""

    model_config = ConfigDict(extra="ignore", frozen=False)
    scale: float = 1.0


class HasALooseConfig(Shift):
    """Reads settings that anybody may change."""

    Config = LooseConfig  # type: ignore[assignment]


class HasOddFlags(Shift):
    """Declares by a word instead of a bool."""

    mergeable = "sometimes"  # type: ignore[assignment]


ADAPTERS: list[tuple[type[Any], str]] = [
    (TrainsTheBase, "test_only_the_adapter_requires_grad"),
    (TrainsTheBase, "test_training_lowers_the_loss_and_leaves_the_base"),
    (TrainsNothing, "test_only_the_adapter_requires_grad"),
    (MovesTheBase, "test_training_lowers_the_loss_and_leaves_the_base"),
    (MovesTheBase, "test_disabled_gives_exactly_the_base"),
    (SavesTheBase, "test_it_saves_only_itself"),
    (SavesAPickle, "test_it_saves_only_itself"),
    (SavesABin, "test_it_saves_only_itself"),
    (SavesTooMuch, "test_it_saves_only_itself"),
    (SavesNothing, "test_it_saves_only_itself"),
    (NeverDisabled, "test_disabled_gives_exactly_the_base"),
    (StaysDisabled, "test_disabled_gives_exactly_the_base"),
    (StaysDisabledAfterAnError, "test_disabled_gives_exactly_the_base"),
    (LoadsRoughly, "test_a_saved_adapter_loads_exactly"),
    (LoadsFrozen, "test_a_saved_adapter_loads_exactly"),
    (ThrowsItsOwnDice, "test_the_same_seed_gives_the_same_adapter"),
    (MergesNothing, "test_merging_gives_a_plain_model_of_the_same_answers"),
    (MergesHalfWay, "test_merging_gives_a_plain_model_of_the_same_answers"),
    (MergesInSecret, "test_merging_gives_a_plain_model_of_the_same_answers"),
    (HasADeadPart, "test_every_learnt_parameter_gets_a_gradient"),
    (LosesGradients, "test_gradient_checkpointing_gives_the_same_gradients"),
    (FitsNoModel, "test_it_works_on_one_of_the_models"),
    (HasALooseConfig, "test_the_settings_cannot_be_changed"),
    (HasALooseConfig, "test_the_settings_refuse_unknown_keys"),
    (HasALooseConfig, "test_every_field_is_described"),
    (HasALooseConfig, "test_the_class_declares_what_its_kind_must"),
    (HasOddFlags, "test_the_class_declares_what_its_kind_must"),
]


@pytest.mark.parametrize(("adapter", "test"), ADAPTERS, ids=lambda x: getattr(x, "__name__", x))
def test_the_kit_catches_a_wrong_adapter(adapter: Any, test: str, tmp_path: Path) -> None:
    contract = type("Contract", (AdapterContract,), {"method_class": adapter})()
    offered = {"settings": {}, "base": tiny_llama, "tmp_path": tmp_path}
    with pytest.raises(Failure):
        _call(getattr(contract, test), offered)


# --- data sets -------------------------------------------------------------------------------


class LinesConfig(DatasetConfig):
    """Settings of a file of lines."""

    path: str = Field("none", description="the file")


class Lines(Dataset[LinesConfig]):
    """One question and answer in each line; right in all that the contract asks."""

    method = "lines"
    Config = LinesConfig
    rows = ("completion",)
    metrics: ClassVar[Mapping[str, Any]] = {"exact": lambda said, right: float(said in right)}

    def records(self, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if split != "train":
            raise DataError("E300", f"there is no split '{split}'")
        for number, line in enumerate(Path(self.config.path).read_text().splitlines(), 1):
            yield f"{self.config.path}:{number}", {"line": line}

    def row(self, record: Mapping[str, Any], origin: str) -> Any:
        question, tab, answer = str(record.get("line", "")).partition("\t")
        if not tab:
            raise DataError("E301", f"{origin}: no tab between question and answer")
        return CompletionRow(question, answer, (answer,), origin)


class LinesContract(DatasetContract):
    method_class = Lines
    bad_records = [{}, {"line": "no tab"}]

    def write(self, folder: Path) -> Mapping[str, Any]:
        (folder / "lines.tsv").write_text("capital of Norway?\tOslo\nof Peru?\tLima\n")
        return {"path": str(folder / "lines.tsv")}


class TestLines(LinesContract):
    pass


class GivesAnotherKind(Lines):
    """Declares completions and gives prompts."""

    def row(self, record: Mapping[str, Any], origin: str) -> Any:
        row = super().row(record, origin)
        return PromptRow(row.prompt, row.answers, origin)


class HidesTheOrigin(Lines):
    """Gives rows that do not say where they are from."""

    def row(self, record: Mapping[str, Any], origin: str) -> Any:
        row = super().row(record, origin)
        return CompletionRow(row.prompt, row.completion, row.answers)


class ReadsOnce(Lines):
    """Is empty when it is read again."""

    _read = False

    def records(self, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if not self._read:
            self._read = True
            yield from super().records(split)


class TakesAnySplit(Lines):
    """Gives the training rows whatever is asked for."""

    def records(self, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        return super().records("train")


class TakesBadRecords(Lines):
    """Makes something of anything."""

    def row(self, record: Mapping[str, Any], origin: str) -> Any:
        return CompletionRow("?", str(record), ("x",), origin)


class ComplainsOfNowhere(Lines):
    """Refuses without saying where."""

    def row(self, record: Mapping[str, Any], origin: str) -> Any:
        try:
            return super().row(record, origin)
        except DataError:
            raise DataError("E301", "no tab between question and answer") from None


class WritesWhereItReads(Lines):
    """Leaves an index beside the data."""

    def records(self, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        Path(self.config.path).with_suffix(".index").write_text("1")
        return super().records(split)


class ScoresTooHigh(Lines):
    """Has a metric beyond 1."""

    metrics: ClassVar[Mapping[str, Any]] = {"length": lambda said, right: float(len(said))}


class ScoresAllAlike(Lines):
    """Has a metric that praises everything."""

    metrics: ClassVar[Mapping[str, Any]] = {"kind": lambda said, right: 1.0}


DATASETS: list[tuple[type[Any], str]] = [
    (GivesAnotherKind, "test_its_rows_are_what_it_declares"),
    (HidesTheOrigin, "test_its_rows_are_what_it_declares"),
    (ReadsOnce, "test_it_reads_the_same_rows_twice"),
    (WritesWhereItReads, "test_it_reads_the_same_rows_twice"),
    (TakesAnySplit, "test_it_refuses_a_split_that_is_not_there"),
    (TakesBadRecords, "test_it_refuses_bad_records_by_their_origin"),
    (ComplainsOfNowhere, "test_it_refuses_bad_records_by_their_origin"),
    (ScoresTooHigh, "test_its_metrics_are_fair"),
    (ScoresAllAlike, "test_its_metrics_are_fair"),
]


@pytest.mark.parametrize(("dataset", "test"), DATASETS, ids=lambda x: getattr(x, "__name__", x))
def test_the_kit_catches_a_wrong_dataset(dataset: Any, test: str, tmp_path: Path) -> None:
    contract = type("Contract", (LinesContract,), {"method_class": dataset})()
    with pytest.raises(Failure):
        _call(getattr(contract, test), {"settings": {}, "tmp_path": tmp_path})


# --- alignments ------------------------------------------------------------------------------


class Prefers(Alignment[AlignmentConfig]):
    """Reads preferences only, as its rows say."""

    method = "prefers"
    Config = AlignmentConfig
    rows = ("preference",)

    def train(self, context: Any) -> StageResult:
        rows = context.rows()
        if not all(isinstance(row, PreferenceRow) for row in rows):
            raise DataError("E302", "a row is no preference")
        result: StageResult = context.fit(rows, self)
        return result


class TestPrefers(AlignmentContract):
    method_class = Prefers


class TrainsOnAnything(Prefers):
    """Trains on whatever comes."""

    def train(self, context: Any) -> StageResult:
        result: StageResult = context.fit(context.rows(), self)
        return result


class ReadsUnknownRows(Prefers):
    """Reads rows of a kind that there is not."""

    rows = ("poems",)  # type: ignore[assignment]


ALIGNMENTS = [
    (TrainsOnAnything, "test_it_refuses_rows_of_another_kind"),
    (ReadsUnknownRows, "test_the_class_declares_what_its_kind_must"),
]


@pytest.mark.parametrize(("alignment", "test"), ALIGNMENTS)
def test_the_kit_catches_a_wrong_alignment(alignment: Any, test: str) -> None:
    contract = type("Contract", (AlignmentContract,), {"method_class": alignment})()
    with pytest.raises(Failure):
        _call(getattr(contract, test), {"settings": {}})


# --- tasks -----------------------------------------------------------------------------------


class Count(Task[TaskConfig]):
    """Counts the letters of prompts."""

    method = "count"
    Config = TaskConfig
    rows = ("prompt",)
    produces = "counts"

    def run(self, context: Any) -> StageResult:
        rows = context.rows()
        if not all(isinstance(row, PromptRow) for row in rows):
            raise DataError("E300", "a row is no prompt")
        return self.write(context, [{"letters": len(row.prompt)} for row in rows])

    def write(self, context: Any, lines: list[Any]) -> StageResult:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (context.folder / "rows.jsonl").write_text(text)
        return StageResult(self.produces, metrics={"lines": float(len(lines))})


class TestCount(TaskContract):
    method_class = Count


class CountsWhatever(Count):
    """Counts rows of any kind."""

    def run(self, context: Any) -> StageResult:
        return self.write(context, [{"letters": len(str(row))} for row in context.rows()])


class WritesNothing(Count):
    """Says that it is done, and leaves no rows."""

    def run(self, context: Any) -> StageResult:
        super().run(context)
        (context.folder / "rows.jsonl").unlink()
        return StageResult(self.produces)


class WritesAnEmptyFile(Count):
    """Leaves a file without a row."""

    def run(self, context: Any) -> StageResult:
        super().run(context)
        return self.write(context, [])


class MakesSomethingElse(Count):
    """Says that it made what it does not declare."""

    def run(self, context: Any) -> StageResult:
        super().run(context)
        return StageResult("poems")


class MeasuresNaN(Count):
    """Has a metric that is no number."""

    def run(self, context: Any) -> StageResult:
        super().run(context)
        return StageResult(self.produces, metrics={"mean": float("nan")})


class DrawsAnew(Count):
    """Draws without the seed."""

    def run(self, context: Any) -> StageResult:
        super().run(context)
        return self.write(context, [{"letters": random.random()}])


class ReadsNoRowsButSays(Count):
    """Reads rows that it does not declare."""

    rows = ()


class MendsWhatItReads(Count):
    """Writes into the folder of an earlier stage."""

    def run(self, context: Any) -> StageResult:
        (context.stage_folder("before") / "rows.jsonl").write_text("mine")
        return super().run(context)


class ProducesASentence(Count):
    """Produces what no reference can name."""

    produces = "some counts"


TASKS: list[tuple[type[Any], str]] = [
    (CountsWhatever, "test_it_refuses_rows_of_another_kind"),
    (WritesNothing, "test_it_writes_rows_and_says_what_they_are"),
    (WritesAnEmptyFile, "test_it_writes_rows_and_says_what_they_are"),
    (MakesSomethingElse, "test_it_writes_rows_and_says_what_they_are"),
    (MeasuresNaN, "test_it_writes_rows_and_says_what_they_are"),
    (DrawsAnew, "test_it_does_the_same_twice"),
    (ReadsNoRowsButSays, "test_it_writes_rows_and_says_what_they_are"),
    (MendsWhatItReads, "test_it_leaves_earlier_stages_as_they_are"),
    (ProducesASentence, "test_it_declares_its_rows_and_what_it_produces"),
]


@pytest.mark.parametrize(("task", "test"), TASKS)
def test_the_kit_catches_a_wrong_task(task: Any, test: str, tmp_path: Path) -> None:
    def earlier(self: Any, folder: Path) -> dict[str, Path]:
        (folder / "rows.jsonl").write_text("theirs")
        return {"before": folder}

    contract = type("Contract", (TaskContract,), {"method_class": task, "earlier": earlier})()
    with pytest.raises(Failure):
        _call(getattr(contract, test), {"settings": {}, "tmp_path": tmp_path})


# --- reward functions ------------------------------------------------------------------------


class Vowels(RewardFunction[RewardConfig]):
    """The share of vowels in an answer."""

    method = "vowels"
    Config = RewardConfig

    def score(self, prompt: Any, completion: str, answers: Any) -> float:
        return sum(letter in "aeiou" for letter in completion) / max(len(completion), 1)


class TestVowels(RewardContract):
    method_class = Vowels


class DividesByTheLength(Vowels):
    """Fails on an empty answer."""

    def score(self, prompt: Any, completion: str, answers: Any) -> float:
        return 1 / len(completion)


class NeedsARightAnswer(Vowels):
    """Counts on an answer that may be unknown."""

    def score(self, prompt: Any, completion: str, answers: Any) -> float:
        return float(completion == answers[0])


class GivesNaN(Vowels):
    """Gives no number to an empty answer."""

    def score(self, prompt: Any, completion: str, answers: Any) -> float:
        return super().score(prompt, completion, answers) if completion else float("nan")


class GivesTruth(Vowels):
    """Gives True where a number is wanted."""

    def score(self, prompt: Any, completion: str, answers: Any) -> Any:
        return "a" in completion


class Moody(Vowels):
    """Scores by chance."""

    def score(self, prompt: Any, completion: str, answers: Any) -> float:
        return random.random()


class Tires(Vowels):
    """Scores each answer lower than the one before."""

    asked = 0

    def score(self, prompt: Any, completion: str, answers: Any) -> float:
        self.asked += 1
        return -float(self.asked)


class SortsTheAnswers(Vowels):
    """Changes the list of right answers."""

    def score(self, prompt: Any, completion: str, answers: Any) -> float:
        if isinstance(answers, list):
            answers.sort()
        return 0.0


class AsksTheNetwork(Vowels):
    """Asks a service for its score."""

    def score(self, prompt: Any, completion: str, answers: Any) -> float:
        with socket.socket() as asked:
            asked.settimeout(0.01)
            asked.connect(("127.0.0.1", 9))
        return 0.0


REWARDS: list[tuple[type[Any], str]] = [
    (DividesByTheLength, "test_it_gives_a_finite_number"),
    (NeedsARightAnswer, "test_it_gives_a_finite_number"),
    (GivesNaN, "test_it_gives_a_finite_number"),
    (GivesTruth, "test_it_gives_a_finite_number"),
    (Moody, "test_it_gives_the_same_each_time"),
    (Tires, "test_it_gives_the_same_each_time"),
    (SortsTheAnswers, "test_it_changes_nothing_that_it_is_given"),
    (AsksTheNetwork, "test_it_reaches_for_no_network_and_no_process"),
]


@pytest.mark.parametrize(("reward", "test"), REWARDS)
def test_the_kit_catches_a_wrong_reward_function(reward: Any, test: str) -> None:
    contract = type("Contract", (RewardContract,), {"method_class": reward})()
    with pytest.raises((*Failure, ArithmeticError, IndexError)):
        _call(getattr(contract, test), {"settings": {}})


# --- trackers --------------------------------------------------------------------------------


class Diary(Tracker[TrackerConfig]):
    """Writes a line for all that it hears, into the run's folder."""

    method, contacts = "diary", ""
    Config = TrackerConfig

    def run_started(self, run: Any) -> None:
        self.folder = run.folder
        self._write("begins")

    def progress(self, progress: Any) -> None:
        self._write(f"{progress.done}")

    def _write(self, text: str) -> None:
        with (self.folder / "diary.txt").open("a") as file:
            file.write(text)


class TestDiary(TrackerContract):
    method_class = Diary


class WritesBesideTheRun(Diary):
    """Writes into the folder above."""

    def stage_finished(self, stage: str, result: Any) -> None:
        (self.folder.parent / "mine.txt").write_text("mine")


class ForgetsEarlyEnds(Diary):
    """Counts on a stage that never came."""

    def stage_started(self, stage: Any) -> None:
        self.stage = stage

    def run_finished(self, summary: Any) -> None:
        self._write(self.stage.name)


class DividesByTheTotal(Diary):
    """Counts on a total that is not zero."""

    def progress(self, progress: Any) -> None:
        self._write(f"{progress.done / progress.total}")


class DoesNotSayWhomItTells(Diary):
    """Leaves it open whether it uses the network."""

    contacts = None


class ChangesWhatItHears(Diary):
    """Adds to metrics that are not its own."""

    def scored(self, stage: str, when: str, metrics: Any) -> None:
        metrics["mine"] = 1.0


TRACKERS: list[tuple[type[Any], str]] = [
    (WritesBesideTheRun, "test_it_hears_a_whole_run"),
    (ForgetsEarlyEnds, "test_it_hears_a_run_that_ends_early"),
    (DividesByTheTotal, "test_it_hears_odd_numbers"),
    (DoesNotSayWhomItTells, "test_it_declares_a_host_that_a_person_can_read"),
    (ChangesWhatItHears, "test_it_changes_nothing_it_hears"),
]


@pytest.mark.parametrize(("tracker", "test"), TRACKERS)
def test_the_kit_catches_a_wrong_tracker(tracker: Any, test: str, tmp_path: Path) -> None:
    contract = type("Contract", (TrackerContract,), {"method_class": tracker})()
    with pytest.raises((*Failure, AttributeError, ZeroDivisionError)):
        _call(getattr(contract, test), {"settings": {}, "tmp_path": tmp_path})


# --- tiny models -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_a_tiny_model_is_the_same_at_each_call_and_moves_no_random_state(make: Any) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second, other = make().state_dict(), make().state_dict(), make(seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_tiny_tokenizer_gives_every_text_back() -> None:
    tokenizer = tiny_tokenizer()
    text = "Oslo — ß🙂\n\ttabs  and spaces"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert ids == list(text.encode())
    assert (tokenizer.eos_token_id, tokenizer.pad_token) == (256, None)
    assert tokenizer.chat_template is None
    assert tiny_tokenizer(pad=True).pad_token_id == 257
    messages = [{"role": "user", "content": "Hi"}]
    assert tiny_tokenizer(chat=True).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    ) == "user: Hi\nassistant: "  # fmt: skip


def test_a_tiny_model_folder_loads_offline(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_model_folder(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    expected = tiny_llama().state_dict()
    assert all(torch.equal(expected[name], t) for name, t in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(folder, local_files_only=True)("A").input_ids == [65]
    assert not list(folder.glob("*.bin"))


def _call(test: Callable[..., None], offered: Mapping[str, Any]) -> None:
    names = test.__code__.co_varnames[1 : test.__code__.co_argcount]
    test(**{name: copy.copy(offered[name]) for name in names})
