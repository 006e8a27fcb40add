"""What `train.bf16: auto` comes to: the device that a run computes on decides, and the weights."""

from __future__ import annotations

from llmft.modeling.base_model import BaseModel
from llmft.recipes.job import Job
from llmft.system import machine


def decided(job: Job, base: BaseModel, gpu: str = "") -> tuple[Job, dict[str, str]]:
    """Return the job with every `bf16: auto` made true or false, and a remark for each such stage.

    gpu: the name of a GPU elsewhere that computes in bfloat16; '': the run is on this machine.
    Raises EnvironmentFault where a recipe says auto and the model's config cannot be read.
    """
    asked = [stage.name for stage in job.written.stages if stage.train.bf16 == "auto"]
    if not asked:
        return job, {}
    if base.source.dtype == "float16":
        value, why = False, "the weights are float16"
    elif gpu:
        value, why = True, f"{gpu} is taken to compute in bfloat16"
    else:
        value, why = machine.computes_in_bfloat16()
    there = "" if gpu else " here"
    said = f"train.bf16: auto -> {'true' if value else 'false'}{there}: {why}"
    return job.with_bf16(value), dict.fromkeys(asked, said)
