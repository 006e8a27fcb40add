"""What the checks share: noting a clash of settings, and asking a plugin's own code."""

from __future__ import annotations

from typing import Any

from llmft.api.errors import LlmftError
from llmft.recipes.methods import Blocks
from llmft.recipes.tree import KeyPath, visible
from llmft.registry.return_checks import AUTHOR, owner_of


def clash(blocks: Blocks, code: str, paths: list[KeyPath], what: str, fix: str) -> None:
    """Note a fault at several keys together, unless one of them is faulty already."""
    if not blocks.tree.touches_broken(paths):
        blocks.tree.report_together(code, paths, what, fix)


def asked(blocks: Blocks, path: KeyPath, ask: Any) -> Any:
    """Return a plugin's answer, or None where it fails, which is noted, or has faulty settings."""
    if blocks.tree.touches_broken([path]):
        return None
    try:
        return ask()
    except LlmftError as error:
        blocks.tree.adopt(error.faults, path)
    except Exception as error:
        # Plugin code: whatever it raises is put to its block, and the other checks go on.
        said = f"{type(error).__name__}: {visible(str(error))[:300]}"
        blocks.tree.report("E502", path, f"{asked_plugin(blocks, path)} failed: {said}", AUTHOR)
    return None


def asked_plugin(blocks: Blocks, path: KeyPath) -> str:
    """Return the plugin whose block a path is in, by its distribution."""
    within = [path[:end] for end in range(len(path), 0, -1)]
    found = [blocks.classes[part] for part in within if part in blocks.classes]
    return owner_of(found[0]) if found else "the plugin"
