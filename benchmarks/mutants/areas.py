"""What is changed, by area, and which tests are nearest to a file: those at its path in tests/."""

from __future__ import annotations

from pathlib import Path

AREAS = {
    "losses and PPO": (
        "plugins/llmft_alignments/preference_maths.py", "plugins/llmft_alignments/pairs.py",
        "plugins/llmft_alignments/orpo.py", "plugins/llmft_alignments/sft.py",
        "plugins/llmft_alignments/kto.py", "plugins/llmft_alignments/cpo.py",
        "plugins/llmft_alignments/start.py",
        "plugins/llmft_alignments/dpo", "plugins/llmft_alignments/ppo",
        "plugins/llmft_alignments/online", "plugins/llmft_alignments/grpo",
        "plugins/llmft_alignments/rloo.py", "plugins/llmft_alignments/reward",
        "llmft/modeling/token_stats.py", "llmft/modeling/forward.py",
    ),
    "training loop": (
        "llmft/training/loop.py", "llmft/training/updates.py", "llmft/training/guard.py",
        "llmft/training/optimizer.py", "llmft/training/metrics.py",
        "llmft/training/step_plan.py", "llmft/data/packing.py",
    ),
    "recipe reading": ("llmft/recipes",),
    "planning": ("llmft/planning",),
    "saving": (
        "llmft/training/checkpoints.py", "llmft/training/training_state.py",
        "llmft/system/fsio.py", "llmft/runs",
    ),
}  # fmt: skip
COUNTS, PIPELINE, MEMORY = (
    f"tests/planning/test_plan_{name}.py" for name in ("counts", "pipeline", "memory")
)
LOSSES, DPO = (f"tests/plugins/alignments/dpo/test_{name}.py" for name in ("losses", "dpo"))
PPO = [
    f"tests/plugins/alignments/ppo/test_{name}.py" for name in ("objective", "rollouts", "ppo_runs")
]
GRPO = [f"tests/plugins/alignments/grpo/test_{name}.py" for name in ("objective", "trl_referee")]
RUNS = "tests/plugins/alignments/test_preference_runs.py"
REFEREE = "tests/plugins/alignments/test_trl_preference_referee.py"
REWARD = "tests/plugins/alignments/reward/test_reward.py"
LOOP, STATE = "tests/training/test_loop.py", "tests/training/test_checkpoints.py"
PROCESSES = "tests/training/test_processes.py"
DECLARED = "tests/plugins/alignments/test_declarations.py"
EVERY, REFERENCE = "tests/plugins/test_every_setting.py", "tests/cli/test_recipe_reference.py"
READING = [f"tests/recipes/test_{name}.py" for name in ("checks", "load", "wording")]
FAULTS = "tests/end_to_end/faults/test_training.py"
RESUME = "tests/end_to_end/checkpoints/test_resume.py"
DAMAGED = "tests/end_to_end/trust/test_damaged_runs.py"
EARLIER, AGAIN, CRASHES = (
    f"tests/end_to_end/pipeline/test_{name}.py"
    for name in ("earlier_runs", "what_runs_again", "stage_crashes")
)
ROWS, PEFT = (f"tests/engine/test_{name}.py" for name in ("rows_per_step", "peft_start"))
FARTHER = {
    **{
        f"llmft/planning/{name}.py": [MEMORY, PIPELINE, COUNTS]
        for name in ("fake_tensors", "memory_tracker", "quantized", "stored", "training_cost")
    },
    **{
        f"llmft/planning/{name}.py": [PIPELINE, COUNTS, "tests/planning/test_plan_command.py"]
        for name in (
            "evaluation_cost",
            "planned_data",
            "planned_models",
            "planned_sampler",
            "planned_stage",
            "fitting",
        )
    },
    "llmft/planning/planner.py": [
        "tests/planning/test_plan_files.py",
        PIPELINE,
        COUNTS,
        "tests/planning/test_plan_command.py",
    ],
    **{
        f"plugins/llmft_alignments/grpo/{name}.py": [*GRPO, EVERY]
        for name in ("__init__", "maths", "objective", "rollouts")
    },
    "plugins/llmft_alignments/grpo/method.py": [DECLARED, *GRPO, EVERY],
    **{f"llmft/recipes/{name}.py": READING for name in ("checks", "load", "wording", "yamlfile")},
    "plugins/llmft_alignments/preference_maths.py": [
        LOSSES,
        REFEREE,
        "tests/plugins/alignments/test_kto.py",
        DPO,
    ],
    "plugins/llmft_alignments/pairs.py": [DPO, REFEREE],
    "plugins/llmft_alignments/kto.py": [DECLARED, REFEREE, EVERY, REFERENCE],
    "plugins/llmft_alignments/cpo.py": [DECLARED, REFEREE, EVERY, REFERENCE, RUNS],
    "plugins/llmft_alignments/start.py": [RUNS],
    "plugins/llmft_alignments/orpo.py": [DECLARED, REFEREE, EVERY, REFERENCE, RUNS],
    "plugins/llmft_alignments/sft.py": [
        *(f"tests/plugins/alignments/test_sft_{name}.py" for name in ("trl_referee", "routers")),
        LOOP,
        EVERY,
        REFERENCE,
    ],
    "plugins/llmft_alignments/dpo/__init__.py": [DECLARED, EVERY, REFERENCE, RUNS],
    "plugins/llmft_alignments/dpo/losses.py": [REFEREE],
    "plugins/llmft_alignments/dpo/reference.py": [RUNS, EVERY],
    "plugins/llmft_alignments/dpo/reranking.py": [RUNS, EVERY],
    "plugins/llmft_alignments/grpo/config.py": [REFERENCE, GRPO[0], EVERY],
    "plugins/llmft_alignments/ppo/__init__.py": [DECLARED, PPO[-1], EVERY],
    "plugins/llmft_alignments/ppo/config.py": [EVERY, REFERENCE, PPO[-1]],
    "plugins/llmft_alignments/online/diagnostics.py": [
        "tests/plugins/alignments/ppo/test_diagnostics.py",
        PPO[1],
    ],
    "plugins/llmft_alignments/online/sampling.py": [*PPO[1:], *GRPO],
    "plugins/llmft_alignments/online/scoring.py": GRPO,
    "plugins/llmft_alignments/online/statistics.py": [*PPO[:1], *GRPO],
    "plugins/llmft_alignments/rloo.py": [*GRPO, EVERY],
    "plugins/llmft_alignments/ppo/maths.py": PPO[:2],
    "plugins/llmft_alignments/ppo/objective.py": PPO[1:],
    "plugins/llmft_alignments/ppo/rollouts.py": PPO,
    "plugins/llmft_alignments/reward/__init__.py": [DECLARED, DPO, EVERY, REFERENCE],
    "plugins/llmft_alignments/reward/report.py": [REWARD, DPO],
    "llmft/modeling/forward.py": ["tests/modeling/test_last_layer.py", REWARD],
    "llmft/recipes/json_schema.py": ["tests/cli/test_schema.py"],
    "llmft/recipes/recipe.py": ["tests/recipes/test_recipe_schema.py", REFERENCE],
    "llmft/runs/accepted.py": ["tests/end_to_end/checkpoints/test_accepted.py"],
    "llmft/runs/artifacts.py": [DAMAGED, EARLIER, AGAIN],
    "llmft/runs/edits.py": ["tests/runs/test_resuming.py", AGAIN],
    "llmft/runs/fingerprint.py": [ROWS, AGAIN],
    "llmft/runs/provenance.py": ["tests/runs/test_resuming.py", "tests/runs/test_run_folder.py"],
    "llmft/runs/resuming.py": ["tests/runs/test_restarts.py", ROWS, AGAIN, CRASHES, RESUME],
    "llmft/runs/run_folder.py": [PEFT, AGAIN, RESUME],
    "llmft/runs/upstream.py": [EARLIER, AGAIN, PEFT, "tests/exporting/test_trained_bases.py"],
    "llmft/system/fsio.py": [STATE, DAMAGED],
    "llmft/training/checkpoints.py": [RESUME],
    "llmft/training/guard.py": [PROCESSES, LOOP, FAULTS],
    "llmft/training/loop.py": [
        FAULTS,
        STATE,
        PROCESSES,
        "tests/training/test_validation.py",
        "tests/end_to_end/checkpoints/test_resume_evaluation.py",
    ],
    "llmft/training/metrics.py": [LOOP, STATE],
    "llmft/training/step_plan.py": [PROCESSES, LOOP],
    "llmft/training/training_state.py": [STATE, RESUME],
    "llmft/training/updates.py": [PROCESSES, LOOP, *PPO[-1:]],
}
"""Tests that are nearest to a file though they stand elsewhere, as they span layers."""


def files_of(root: Path, area: str) -> list[str]:
    """Return the source files of an area."""
    found = []
    for name in AREAS[area]:
        path = root / name
        found += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return [path.relative_to(root).as_posix() for path in found]


def tests_of(root: Path, file: str) -> list[str]:
    """Return the test files nearest to a source file, the nearest first.

    Those named after it, or else all of its folder; and those in FARTHER.
    """
    parts = Path(file).with_suffix("").parts
    if parts[0] == "plugins":
        parts = ("plugins", parts[1].removeprefix("llmft_"), *parts[2:])
    else:
        parts = parts[1:]
    folder, name = root.joinpath("tests", *parts[:-1]), parts[-1]
    own = name if name != "__init__" else folder.name
    named = [folder / f"test_{own}.py", folder / own / f"test_{own}.py"]
    named = [path for path in named if path.is_file()]
    if not named and file not in FARTHER:
        named = sorted(folder.glob("test_*.py"))
    names = [path.relative_to(root).as_posix() for path in named]
    return list(dict.fromkeys([*names, *FARTHER.get(file, [])]))
