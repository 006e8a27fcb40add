"""One run in a process of its own, which may be killed: `python -m llmft.verifying.child JOB`.

JOB is a JSON file: recipe, overrides, trust (what --trust granted), run_folder (null: a new run),
marks, kill_at and ended. What it ended with goes to `ended`: the run's folder, or the errors.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from llmft.api.errors import LlmftError
from llmft.verifying.marks import Mark, Recorder


def main(path: str) -> int:
    """Run the job, and return the exit code that `llmft run` would have."""
    job: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))
    kill_at = Mark(**job["kill_at"]) if job["kill_at"] else None
    Recorder(Path(job["marks"]), kill_at).install()
    ended: dict[str, Any]
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            folder = _run(job)
        code, ended = 0, {"folder": str(folder)}
    except LlmftError as error:
        code, ended = error.exit_code, {"errors": [fault.as_json() for fault in error.faults]}
    Path(job["ended"]).write_text(json.dumps({"code": code, **ended}), "utf-8")
    return code


def _run(order: dict[str, Any]) -> Path:
    from llmft.engine.session import resume_recipe, run_recipe
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry
    from llmft.system import trust

    trust.grant(order["trust"])
    job = load_recipe(order["recipe"], Registry.discover(), order["overrides"])
    if order["run_folder"]:
        return resume_recipe(job, Path(order["run_folder"])).folder
    return run_recipe(job).folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
