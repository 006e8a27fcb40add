"""A recipe that is bound to its methods: what the rest of llmft works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmft.api import (
    Adapter,
    Alignment,
    Callback,
    Dataset,
    MetricFunction,
    Optimizer,
    RewardConfig,
    RewardFunction,
    Schedule,
    Task,
    Tracker,
)
from llmft.api.errors import CheckpointError, Fault, LlmftError
from llmft.recipes.methods import nested_methods
from llmft.recipes.recipe import Recipe, Stage
from llmft.recipes.rounds import Rounds
from llmft.recipes.sources import data_blocks
from llmft.recipes.tree import KeyPath, Tree, dotted
from llmft.system.trust import digest_of


@dataclass(frozen=True, slots=True)
class Source:
    """What a recipe was read from, which an error points at.

    path: the file. text: the file as given. overrides: the `--set` values, as given.
    """

    path: str
    text: str
    overrides: tuple[str, ...]
    tree: Tree

    def fault(self, code: str, path: KeyPath, what: str, fix: str = "") -> Fault:
        """Return a fault at a key of the recipe."""
        return Fault(code, what, fix, dotted(path), self.tree.place(path))


@dataclass(frozen=True, slots=True)
class Upstream:
    """A stage that another one names.

    target: as the recipe names it. produces: what it has to make. stage: the stage itself; None
    where it is of another run, and that makes no model or cannot be read. run: the folder of that
    other run; None for a stage of this one, and where it is not found. error: why it is not bound.
    """

    target: str
    produces: str
    stage: BoundStage | None = None
    run: Path | None = None
    error: LlmftError | None = None


@dataclass(frozen=True, slots=True)
class BoundStage:
    """A stage with the live objects of its methods.

    spec: what the recipe says. adapter: what it trains, its own or that of the stage it starts
    from; None for a task on the base alone. dataset: None for a task that reads no rows. rewards:
    the reward functions that its settings choose. upstream: the stages that it names, by target.
    metrics: those that are methods of their own, beside the loss and the data's.
    optimizer: what moves its parameters. schedule: how its learning rate moves; each training makes
    one of its own of these settings. callbacks: what acts after its steps; likewise.
    """

    spec: Stage
    adapter: Adapter[Any] | None
    work: Alignment[Any] | Task[Any]
    dataset: Dataset[Any] | None
    rewards: tuple[RewardFunction[Any], ...]
    upstream: Mapping[str, Upstream]
    metrics: tuple[MetricFunction[Any], ...]
    optimizer: Optimizer[Any]
    schedule: Schedule[Any]
    callbacks: tuple[Callback[Any], ...] = ()

    @property
    def name(self) -> str:
        """What the recipe calls the stage."""
        return self.spec.name

    @property
    def start(self) -> Upstream | None:
        """The stage that this one starts from; None where it begins on the base."""
        return self.upstream[self.spec.start] if self.spec.start else None

    @property
    def continued(self) -> Upstream | None:
        """The stage whose adapter this one goes on with; None where its own adapter is new."""
        return None if self.spec.merges_start else self.start

    @property
    def goes_on(self) -> bool:
        """Whether it goes on training an adapter that a stage or PEFT saved."""
        return self.continued is not None or self.spec.peft_start is not None

    @property
    def stands_on(self) -> tuple[str, ...]:
        """The stages that are merged into the base under this one's adapter, the first one first.

        Empty: it stands on the base alone.
        """
        start = self.start
        if start is None or start.stage is None:
            return ()
        below = start.stage.stands_on
        return (*below, start.target) if self.spec.merges_start else below

    @property
    def model_adapter(self) -> Adapter[Any] | None:
        """The adapter on the stage's model; None for a task on the base alone.

        Raises CheckpointError where it is that of another run, which cannot be read.
        """
        start = self.start
        if self.adapter is None and start is not None:
            raise start.error or CheckpointError(
                "E402", f"the adapter of '{start.target}' is not known", fix="name another stage"
            )
        return self.adapter

    @property
    def keyed_rewards(self) -> list[tuple[KeyPath, RewardFunction[Any]]]:
        """Its reward functions, each with the key of its block."""
        nested = nested_methods(self.spec.work, (self.spec.work_kind,))
        keys = [key for key, kind, _ in nested if kind == "reward"]
        return list(zip(keys, self.rewards, strict=True))

    def code(self) -> list[tuple[KeyPath, str]]:
        """Return the files of code that its methods' settings name, each with the setting's key."""
        made: list[tuple[KeyPath, Any]] = []
        if self.dataset is not None and self.spec.data is not None:
            datasets = self.dataset.sources or (self.dataset,)
            keys = [key for key, _ in data_blocks(self.spec.data)]
            made += zip(keys, datasets, strict=True)
        made += self.keyed_rewards
        made.append(((self.spec.work_kind,), self.work))
        return [
            ((*key, name), path)
            for key, method in made
            for name, paths in method.code().items()
            for path in ([paths] if isinstance(paths, str) else paths)
        ]

    def reads(self) -> dict[str, str]:
        """Return what its task reads beside rows and stages, each with a digest or a version."""
        return dict(self.work.reads()) if isinstance(self.work, Task) else {}

    def reward_function(self, config: RewardConfig) -> RewardFunction[Any]:
        """Return the reward function that a block in the stage's settings chooses."""
        return next(made for made in self.rewards if made.config == config)


@dataclass(frozen=True, slots=True)
class Job:
    """A recipe that passed every check, bound to its methods.

    recipe: with repeated stages written out, round after round; `written`: as the file has it.
    rounds: which stage is of which round. stages: those of `recipe`, in order. make_trackers: gives
    the trackers, which take hold of the terminal when they are made. records: which distribution
    and version gave each method, for the lock. hooks: gives pluggy's manager, in which exactly the
    plugins that the recipe names act on stages. load: reads another recipe, with the same methods:
    (path, overrides) -> Job.
    """

    recipe: Recipe
    written: Recipe
    rounds: Rounds
    stages: tuple[BoundStage, ...]
    make_trackers: Callable[[], tuple[Tracker[Any], ...]]
    records: tuple[Any, ...]
    hooks: Callable[[], Any]
    load: Callable[..., Job]
    source: Source

    def stage(self, name: str) -> BoundStage:
        """Return the stage of that name; KeyError if there is none."""
        return {stage.name: stage for stage in self.stages}[name]

    def code(self) -> dict[str, list[str]]:
        """Return the files of code that run, each with the stages whose settings name it."""
        found: dict[str, list[str]] = {}
        for stage in self.stages:
            for _, path in stage.code():
                if stage.name not in found.setdefault(path, []):
                    found[path].append(stage.name)
        return found

    def code_remarks(self) -> list[str]:
        """Return what a person should know of files of code that run, and hosts of tasks."""
        return [
            f"runs the code in '{path}' (SHA-256 {digest_of(path)[:16]}), as --trust allows"
            for path in self.code()
        ] + [
            f"{stage.name}: {said}"
            for stage in self.stages
            if isinstance(stage.work, Task)
            for said in stage.work.contacts()
        ]

    @property
    def written_stages(self) -> tuple[BoundStage, ...]:
        """The stages as the file has them; later rounds have the same settings."""
        return tuple(self.stage(stage.name) for stage in self.written.stages)

    def index_of(self, stage: str) -> int:
        """Return where the file has a stage, by its name in whichever round."""
        name = self.rounds[stage][0] if stage in self.rounds else stage
        return [one.name for one in self.written.stages].index(name)

    def says_auto(self, stage: str) -> bool:
        """Return whether the file, with its overrides, leaves a stage's bf16 to the machine."""
        block = self.source.tree.data["stages"][self.index_of(stage)]
        return bool((block.get("train") or {}).get("bf16") == "auto")

    def with_bf16(self, value: bool) -> Job:
        """Return the job in which bf16 has this value where a stage's settings say `auto`."""

        def decided(stage: Stage) -> Stage:
            if stage.train.bf16 != "auto":
                return stage
            train = stage.train.model_copy(update={"bf16": value})
            return stage.model_copy(update={"train": train})

        def whole(recipe: Recipe) -> Recipe:
            return recipe.model_copy(update={"stages": [decided(one) for one in recipe.stages]})

        stages = tuple(replace(bound, spec=decided(bound.spec)) for bound in self.stages)
        recipe, written = whole(self.recipe), whole(self.written)
        return replace(self, recipe=recipe, written=written, stages=stages)

    def fault(self, code: str, path: KeyPath, what: str, fix: str = "") -> Fault:
        """Return a fault at a key of this recipe, for what is found out later."""
        return self.source.fault(code, path, what, fix)

    def with_stage(self, recipe: Recipe, spec: Stage) -> Job:
        """Return the job with another recipe, in which one stage's training settings differ."""
        stages = tuple(
            replace(bound, spec=spec) if bound.name == spec.name else bound for bound in self.stages
        )
        return replace(self, recipe=recipe, written=recipe, stages=stages)
