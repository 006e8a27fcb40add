"""A plan: what each stage of a recipe would load, train, take and write."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from llmft.api import Alignment, Task
from llmft.api.errors import EnvironmentFault, LlmftError, StageError, WaitsForPeople
from llmft.engine.auto_precision import decided
from llmft.engine.preflight import refuse_faults, start_remarks
from llmft.engine.stage_preview import data_of
from llmft.engine.trackers import Trackers
from llmft.hub import sources
from llmft.modeling.base_model import BaseModel
from llmft.modeling.counting import count_parameters
from llmft.modeling.head_pieces import planned_for_a_gpu
from llmft.planning.batch_choice import Counts
from llmft.planning.cuda_autocast import CudaAutocast
from llmft.planning.fake_tensors import ShapesOnly
from llmft.planning.memory_tracker import OPTIMIZER, WORKSPACES, Peak
from llmft.planning.plan_state import Computed, SampledCounts
from llmft.planning.planned_stage import PlannedStage
from llmft.planning.processes import ALONE, Processes
from llmft.recipes.job import BoundStage, Job
from llmft.recipes.locating import located
from llmft.recipes.recipe import PEFT, Recipe, Stage
from llmft.recipes.references import stages_read
from llmft.registry.return_checks import bytes_of_callback
from llmft.system import machine
from llmft.training.step_plan import Plan


@dataclass(frozen=True)
class Evaluations:
    """How often a stage is scored during training, on how many rows; how often with answers."""

    times: int
    rows: int
    with_answers: int


@dataclass(frozen=True)
class StagePlan:
    """What a stage would do.

    rounds: how often it runs. counts: None where it trains nothing, or its rows cannot be read from
    here. evaluations: those during training. drawn: the answers that a task samples, or all
    rollouts of a stage. followed: whether the memory of all its phases is in `peaks`; a remark says
    what is not. held_out: the rows it is scored on before and after training.
    """

    name: str
    adapter: str
    work: str
    data: str
    inputs: tuple[str, ...]
    produces: str
    trains: bool
    rounds: int
    drawn: SampledCounts | None
    trainable_parameters: int
    total_parameters: int
    quantization: str
    counts: Counts | None
    evaluations: Evaluations | None
    peaks: tuple[Peak, ...]
    followed: bool
    held_out: int
    computed: Computed
    files: tuple[tuple[str, int], ...]
    remarks: tuple[str, ...]

    @property
    def peak(self) -> Peak:
        """The phase that takes the most."""
        return max(self.peaks, key=lambda peak: (peak.total, peak.tensors))


@dataclass(frozen=True)
class RecipePlan:
    """What a whole recipe would do. network: what is fetched, sent or told elsewhere.

    processes: that train together; memory is each one's.
    """

    job: Job
    base: BaseModel
    stages: tuple[StagePlan, ...]
    network: tuple[str, ...]
    processes: Processes = ALONE

    @property
    def recipe(self) -> Recipe:
        """The recipe as the file has it."""
        return self.job.written

    @property
    def worst(self) -> StagePlan:
        """The stage that takes the most memory."""
        return max(self.stages, key=lambda stage: stage.peak.total)


def plan_recipe(
    job: Job, *, in_ram: bool = True, gpu: str = "", processes: Processes = ALONE
) -> RecipePlan:
    """Return a recipe's plan; no weight is loaded, and nothing stays written.

    in_ram: the model is trained in the machine's own memory. gpu: the GPU elsewhere that it is
    planned for, by name or memory. processes: that train together, each with a GPU.
    Raises what a run would raise before its first step: RecipeError for what does not fit the
    model, DataError for bad rows.
    """
    base = BaseModel(job.recipe.model)
    # Rows out of reach are assumed.
    refuse_faults(job, base, hub_rows=False, processes=processes.count)
    job, remarks = decided(job, base, gpu)
    slow = _slow_half(job, base) if in_ram and not gpu else {}
    with tempfile.TemporaryDirectory() as scratch:  # for what a method keeps beside its run
        stages = []
        for bound in job.written_stages:  # a later round takes what the first does
            with located(job, bound.name):
                place = Path(scratch, bound.name)
                made = plan_stage(
                    job, bound, base, in_ram=in_ram, folder=place, processes=processes
                )
            told = [said[bound.name] for said in (remarks, slow) if bound.name in said]
            stages.append(replace(made, remarks=(*told, *made.remarks)))
    network = (*_network(job), *start_remarks(job, base))
    return RecipePlan(job, base, tuple(stages), network, processes)


CUBLAS = (32 * 2**20, 32 * 2**20)
"""What cuBLAS works in: one for forward passes, one for autograd's thread; on an H100, the most."""
SLOWER = 0.9
"""A rate of products in bfloat16, beside float32's, at which a plan says that they are slower."""


def _slow_half(job: Job, base: BaseModel) -> dict[str, str]:
    """Return a remark for each stage that multiplies in bfloat16 on a CPU that is slower so."""
    stored = base.source.dtype == "bfloat16"
    asked = [
        bound.name
        for bound in job.written_stages
        if isinstance(bound.work, Alignment) and (stored or bound.spec.train.under_autocast)
    ]
    if not asked or (rate := machine.bfloat16_over_float32()) >= SLOWER:
        return {}
    fix = "model.dtype: float32 and train.bf16: false" if stored else "train.bf16: false"
    said = (
        f"this CPU multiplies matrices in bfloat16 {rate:.2g} times as fast as in float32:"
        f" {fix} is likely faster here"
    )
    return dict.fromkeys(asked, said)


def plan_stage(
    job: Job,
    bound: BoundStage,
    base: BaseModel,
    *,
    in_ram: bool,
    folder: Path | None = None,
    processes: Processes = ALONE,
) -> StagePlan:
    """Return one stage's plan. folder: gets its made-up files, beside those of earlier stages'."""
    stage, recipe = bound.spec, job.written
    with tempfile.TemporaryDirectory() as scratch:
        place = folder or Path(scratch, stage.name)
        place.mkdir()
        planned = PlannedStage(job, bound, base, folder=place, in_ram=in_ram, processes=processes)
        trainable, total, followed = _compute(planned)
    memory = planned.state.memory
    bits = {"load_in_4bit": "4-bit", "load_in_8bit": "8-bit"}
    stored = next((said for key, said in bits.items() if planned.models.load_options.get(key)), "")
    return StagePlan(
        name=stage.name,
        adapter=planned.models.adapter.method if planned.models.adapter else "",
        work=planned.work.method,
        data=data_of(planned.bound),
        inputs=(*stages_read(stage), *([f"{PEFT}{start}"] if (start := stage.peft_start) else [])),
        produces=planned.work.produces,
        trains=isinstance(planned.work, Alignment),
        rounds=_rounds(recipe, stage),
        drawn=planned.state.sampled,
        trainable_parameters=trainable,
        total_parameters=total,
        quantization=stored,
        counts=planned.state.counts,
        evaluations=_evaluations(planned),
        peaks=tuple(memory.peaks),
        followed=followed,
        held_out=_held_out(planned),
        computed=planned.state.computed,
        files=tuple(_files(stage, planned)),
        remarks=(*planned.log.notes, *planned.state.remarks),
    )


def _compute(planned: PlannedStage) -> tuple[int, int, bool]:
    """Let the stage's methods work without numbers.

    Return (trainable, total) parameters, and whether they could be followed to their end.
    """
    memory = planned.state.memory
    memory.begin("load")
    if isinstance(planned.work, Alignment):
        planned.work.prepare(planned)
    try:
        trainable, total = count_parameters(planned.models.model) if _loads(planned) else (0, 0)
    except LlmftError:
        raise
    except Exception as error:  # a plugin's own code, met with tensors that it never sees in a run
        planned.state.remark(
            f"'{planned.models.adapter.method}' cannot be attached without weights"
            f" ({_said(error)}): its parameters and everything after loading are not counted"
        )
        total = planned.models.count_base()
        memory.close()
        return 0, total, False
    followed = True
    memory.begin("prepare")
    if not planned.state.in_ram and _loads(planned):
        memory.hold(WORKSPACES, CUBLAS)
    try:
        with memory, ShapesOnly(), _as_on(in_ram=planned.state.in_ram):
            if isinstance(planned.work, Alignment):
                planned.work.train(planned)
            else:
                _run_task(planned)
    except LlmftError:
        raise
    except Exception as error:  # as above
        followed = False
        planned.state.remark(
            f"'{planned.work.method}' cannot be planned without weights ({_said(error)}):"
            f" memory after the phase '{memory.phase}' is not counted"
        )
    memory.close()
    return trainable, total, followed


@contextmanager
def _as_on(*, in_ram: bool) -> Iterator[None]:
    """Let what is computed be computed as in the machine's own memory, or as on a GPU."""
    if in_ram:
        yield
        return
    with planned_for_a_gpu(), CudaAutocast():
        yield


def _loads(planned: PlannedStage) -> bool:
    """Return whether a stage has a model: a task that reads neither rows nor one has none."""
    if isinstance(planned.work, Alignment) or planned.work.rows or planned.spec.start_from:
        return True
    recipe = planned.job.written
    made = {stage.name for stage in recipe.stages if stage.task is not None}
    return bool(set(stages_read(planned.spec)) - made)


def _run_task(planned: PlannedStage) -> None:
    """Let a task run on made-up rows; that it can make nothing of them says nothing of a run."""
    assert isinstance(planned.work, Task)
    try:
        planned.work.run(planned)
    except WaitsForPeople:
        planned.state.remark(
            "the run stops here, with exit code 9, until people have ranked the answers"
        )
    except StageError:
        pass
    except EnvironmentFault as error:
        planned.state.remark(f"what it reads is not here: {error.faults[0].what}")


def _rounds(recipe: Recipe, stage: Stage) -> int:
    repeat = recipe.repeat
    return repeat.rounds if repeat and stage.name in repeat.stages else 1


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _files(stage: Stage, planned: PlannedStage) -> list[tuple[str, int]]:
    """Return the files of a stage's folder that matter, and about how many bytes each has."""
    state = planned.state
    counts = state.counts
    optimizer = max((peak.by_kind.get(OPTIMIZER, 0) for peak in state.memory.peaks), default=0)
    folder = f"stages/{stage.name}"
    if stage.task:
        return [(f"{folder}/rows.jsonl", 0)]
    files = [(f"{folder}/adapter", state.saved_bytes)]
    chooses = stage.evaluate is not None and stage.evaluate.best_metric is not None
    if stage.train.save_strategy != "no" or chooses:
        kept = stage.train.save_total_limit
        if counts is not None:
            kept = min(kept, _saves(stage, counts, state.processes))
        size = state.trained_bytes + optimizer + _of_callbacks(planned)
        files.append((f"{folder}/checkpoints, {kept} kept", kept * size))
    return files


def _of_callbacks(planned: PlannedStage) -> int:
    """Return the bytes that callbacks add to a checkpoint: their state, and the trained weights.

    The latter where it holds others that are used in their place.
    """
    callbacks = planned.bound.callbacks
    if not callbacks:
        return 0
    trained = [p for p in planned.models.model.parameters() if p.requires_grad]
    own = sum(bytes_of_callback(one, p) for one in callbacks for p in trained)
    given = any(one.gives_weights for one in callbacks)
    return own + planned.state.trained_bytes * given


def _saves(stage: Stage, counts: Counts, processes: Processes) -> int:
    """Return how many checkpoints a stage writes in all, at most."""
    plan = Plan.of(counts.items, stage.train, 0, processes.count)
    saves = plan.saves(stage.train)
    if stage.evaluate is not None and stage.evaluate.best_metric:  # each may be the best
        saves += plan.evaluations(stage.evaluate, stage.train)
    return saves


def _evaluations(planned: PlannedStage) -> Evaluations | None:
    """Return how often a stage is scored during training; None where it is not, or not known."""
    asked, counts, train = planned.spec.evaluate, planned.state.counts, planned.train
    if asked is None or counts is None or asked.eval_strategy == "no":
        return None
    plan = Plan.of(counts.items, train, 0, planned.state.processes.count)
    times = plan.evaluations(asked, train)
    every = asked.generate_every
    return Evaluations(times, len(planned.data.held_out()), times // every if every else 0)


def _held_out(planned: PlannedStage) -> int:
    scored = planned.spec.evaluate is not None and isinstance(planned.work, Alignment)
    return len(planned.data.held_out()) if scored else 0


def _network(job: Job) -> list[str]:
    """Return what is fetched from elsewhere or sent there, and whose code runs."""
    contacts = Trackers(job.make_trackers()).contacts()
    return [*job.code_remarks(), *sources.remarks(job.written), *contacts]
