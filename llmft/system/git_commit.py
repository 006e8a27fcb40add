"""The commit that a folder's repository stands at, read from its files.

No git is started: a repository's own configuration names programs that git runs (fsmonitor,
filters, hooks), and the folder may be somebody else's.
"""

from __future__ import annotations

import re
from pathlib import Path

from llmft.system.plain_files import read_small

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REF = re.compile(r"refs/[\w.][\w./+@-]*")
_MOST_BYTES = 16 * 2**20  # of packed-refs, in a repository with very many branches


def git_commit(folder: Path) -> str | None:
    """Return the commit that the repository around a folder has checked out; None without one."""
    folder = folder.absolute()
    for place in (folder, *folder.parents):
        git = place / ".git"
        if git.is_dir():
            return _commit(git)
        if git.is_file():  # a worktree or a submodule: the file says where the rest is
            target = (read_small(git) or "").strip().removeprefix("gitdir:").strip()
            return _commit(place / target) if target else None
    return None


def _commit(git: Path) -> str | None:
    head = (read_small(git / "HEAD") or "").strip()
    if _HASH.fullmatch(head):
        return head
    ref = head.removeprefix("ref:").strip()
    if not _REF.fullmatch(ref) or ".." in ref:
        return None
    shared = (read_small(git / "commondir") or "").strip()
    for place in (git, git / shared):
        found = (read_small(place / ref) or "").strip()
        if _HASH.fullmatch(found):
            return found
        for line in (read_small(place / "packed-refs", _MOST_BYTES) or "").splitlines():
            commit, _, name = line.partition(" ")
            if name == ref and _HASH.fullmatch(commit):
                return commit
    return None
