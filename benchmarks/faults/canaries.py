"""Secrets planted in the environment, and a search for them in everything that is written."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

PLANTED = {
    "HF_TOKEN": "hf_CanaryCanaryCanaryCanaryCanary01",
    "WANDB_API_KEY": "ca9a41e5" * 5,
    "MY_DATABASE_PASSWORD": "canary-in-the-coal-mine-77",
}


class Canaries:
    """Counts what was searched, and lists where a secret was found."""

    def __init__(self) -> None:
        self.files, self.bytes = 0, 0
        self.found: list[str] = []
        self._lock = threading.Lock()

    def search(self, folder: Path) -> None:
        """Read every file below a folder, whatever it is."""
        for path in folder.rglob("*"):
            if not path.is_file() or path.is_symlink():
                continue
            data = path.read_bytes()
            names = [name for name, secret in PLANTED.items() if secret.encode() in data]
            with self._lock:
                self.files, self.bytes = self.files + 1, self.bytes + len(data)
                self.found += [f"{name} in {path.name}" for name in names]

    def provoke(self, server: Any, recipe: dict[str, Any], home: Path) -> list[str]:
        """Let a bug print a secret, and commands print all they know; return what went wrong."""
        from harness import run_in_child

        home.mkdir()
        broken = run_in_child(server, home, recipe, "bug", fault={"kind": "bug"})
        reports = [path.read_text() for path in broken.folder.glob("logs/crash-*.txt")]
        words = [["doctor", "--json"], ["doctor", "--torch"], ["validate", "bug/recipe.yaml"]]
        for number, argv in enumerate(words):
            server.start(argv, home / f"said-{number}.txt")
            server.end()
        self.search(home)
        told = [text for text in reports if "could not log in" in text and "Traceback" in text]
        return [] if broken.code == 1 and told else ["a bug left no report"]
