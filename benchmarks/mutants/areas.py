"""What is changed, by area, and which tests are nearest to a file: those at its path in tests/."""

from __future__ import annotations

from pathlib import Path

AREAS = {
    "losses and PPO": (
        "plugins/llmft_alignments/losses.py", "plugins/llmft_alignments/pairs.py",
        "plugins/llmft_alignments/orpo.py", "plugins/llmft_alignments/sft.py",
        "plugins/llmft_alignments/dpo", "plugins/llmft_alignments/ppo",
        "plugins/llmft_alignments/reward", "llmft/modeling/token_stats.py",
        "llmft/modeling/forward.py",
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
PACKAGES = {"llmft_adapters": "adapters", "llmft_alignments": "alignments"}
REFERENCE = "tests/cli/test_recipe_reference.py"
FARTHER = {
    "plugins/llmft_alignments/losses.py": ["tests/plugins/alignments/dpo/test_losses.py"],
    "plugins/llmft_alignments/pairs.py": ["tests/plugins/alignments/dpo/test_dpo.py"],
    "plugins/llmft_alignments/orpo.py": ["tests/plugins/alignments/dpo/test_dpo.py", REFERENCE],
    "plugins/llmft_alignments/dpo/__init__.py": [REFERENCE],
    "plugins/llmft_alignments/ppo/config.py": [REFERENCE],
    "plugins/llmft_alignments/reward/__init__.py": [
        "tests/plugins/alignments/dpo/test_dpo.py",
        REFERENCE,
    ],
    "plugins/llmft_alignments/reward/report.py": ["tests/plugins/alignments/dpo/test_dpo.py"],
    "llmft/recipes/recipe.py": [REFERENCE],
    "llmft/system/fsio.py": ["tests/training/test_checkpoints.py"],
    "llmft/training/guard.py": ["tests/end_to_end/faults/test_training.py"],
    "llmft/training/loop.py": ["tests/end_to_end/faults/test_training.py"],
    "llmft/runs/upstream.py": ["tests/end_to_end/pipeline/test_earlier_runs.py"],
    "llmft/runs/artifacts.py": ["tests/end_to_end/pipeline/test_earlier_runs.py"],
    "llmft/runs/resuming.py": ["tests/end_to_end/pipeline/test_what_runs_again.py"],
    "llmft/recipes/json_schema.py": ["tests/cli/test_schema.py"],
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

    Those named after it; the others of its folder; and for a plugin those of the folders around.
    """
    parts = Path(file).with_suffix("").parts
    if parts[0] == "plugins":
        parts = ("plugins", parts[1].removeprefix("llmft_"), *parts[2:])
    else:
        parts = parts[1:]
    folder, name = root.joinpath("tests", *parts[:-1]), parts[-1]
    own = name if name != "__init__" else folder.name
    found = [folder / f"test_{own}.py", folder / own / f"test_{own}.py"]
    found += sorted(folder.glob("test_*.py"))
    if parts[0] == "plugins" and len(parts) > 3:
        found += sorted(folder.parent.glob("test_*.py"))
    names = [path.relative_to(root).as_posix() for path in found if path.is_file()]
    return list(dict.fromkeys([*names[:1], *FARTHER.get(file, []), *names[1:]]))
