"""A finished stage of a run, and its model, tokenizer and prompts put together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llmft.api import Dataset
from llmft.data.encoding import Encoder
from llmft.inference.answering import load_run, model_of_run
from llmft.modeling.base_model import BaseModel
from llmft.recipes.job import BoundStage, Job
from llmft.registry.registry import Registry
from llmft.runs import artifacts
from llmft.runs.upstream import dataset_in, twin
from llmft.system import fsio
from llmft.system.quiet import before_upstream


@dataclass(frozen=True)
class TrainedStage:
    """A stage that made a policy. run, folder: the run's, and the stage's in it."""

    job: Job
    run: Path
    folder: Path

    @property
    def bound(self) -> BoundStage:
        """The stage, with its methods as live objects."""
        return self.job.stage(self.folder.name)

    @cached_property
    def base(self) -> BaseModel:
        """The base model of the run, with its tokenizer."""
        return BaseModel(self.job.recipe.model)

    @cached_property
    def dataset(self) -> Dataset[Any] | None:
        """The stage's data set."""
        return dataset_in(self.bound, self.run)

    @cached_property
    def encoder(self) -> Encoder:
        """What turns prompts into token ids, as in training."""
        return Encoder(self.base.tokenizer, None, self.base.chat_format)

    @property
    def adapter_folder(self) -> Path:
        """The folder that holds what the stage trained."""
        return self.folder / artifacts.ADAPTER

    @property
    def result(self) -> dict[str, Any]:
        """What the stage wrote of itself."""
        return artifacts.result_of(self.folder)

    @property
    def lock(self) -> dict[str, Any]:
        """What the run stood on."""
        return fsio.read_json(self.run / "lock.json", artifacts.PUT_BACK)

    def model(self, *, varlen: bool = False, with_adapter: bool = True, on: Any = None) -> Any:
        """Return the model that the stage made, on the device, in evaluation mode and frozen.

        on: its base, loaded already; its weights are shared, and it stays as it is.
        """
        model = model_of_run(
            self.job, self.bound, self.base, self.folder, varlen=varlen, with_adapter=with_adapter,
            loaded=twin(on) if on is not None else None,
        )  # fmt: skip
        return model.requires_grad_(False).eval()


def trained_stage(run: Path, stage: str | None = None, *, fix: str = "") -> TrainedStage:
    """Return a finished stage that made a policy: the one named, or the last.

    Its files are checked against their manifest, and the base model against the run's lock.
    fix: suggested where no stage made a policy.
    Raises CheckpointError where there is none, or a file is damaged, or the base has changed.
    """
    before_upstream()
    job = load_run(run, Registry.discover())
    return TrainedStage(job, run, artifacts.stage_that_made("policy", run, stage, fix=fix))


def sampled_texts(folder: Path) -> Iterable[dict[str, Any]]:
    """Yield the samples of a stage that its evaluation kept: prompts with their answers."""
    import json

    from llmft.system.plain_files import read_text

    path = folder / "samples.jsonl"
    if not path.is_file():
        return
    with fsio.as_a_run_wrote(folder, artifacts.PUT_BACK):
        for line in read_text(path, 2**28).split("\n"):  # a text may hold U+2028
            found = json.loads(line) if line.strip() else None
            if isinstance(found, dict) and "prompt" in found:
                yield found
