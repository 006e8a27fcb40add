"""What the installed distributions say that they offer, read from metadata: nothing is imported."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import Distribution, distributions
from pathlib import Path

_DOTTED = r"\w+(?:\.\w+)*"
_VALUE = re.compile(rf"(?P<module>{_DOTTED})\s*(?::\s*(?P<attribute>{_DOTTED}))?\s*(?:\[|$)")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_CODE_SUFFIXES = {".py", ".so", ".pyd", ".dll", ".dylib"}


@dataclass(frozen=True)
class MethodEntry:
    """One entry point: the method `name` that a distribution offers, and where its code is."""

    group: str
    name: str
    value: str
    distribution: str
    version: str
    _dist: Distribution

    @property
    def module(self) -> str:
        """The module to import; empty where the entry point names none."""
        match = _VALUE.match(self.value.strip())
        return match["module"] if match else ""

    @property
    def attribute(self) -> str:
        """The object within the module that carries the hooks; empty for the module itself."""
        match = _VALUE.match(self.value.strip())
        return (match["attribute"] or "") if match else ""

    @property
    def full_name(self) -> str:
        """The name that stays clear when two distributions offer the same: `dist:name`."""
        return f"{self.distribution}:{self.name}"

    @cached_property
    def requirements(self) -> Mapping[str, str]:
        """What the distribution says it needs: distribution -> the extra it belongs to, or ''."""
        found: dict[str, str] = {}
        for line in self._dist.requires or []:
            name, extra = re.match(r"[\w.-]*", line), _EXTRA.search(line)
            found.setdefault(canonical(name[0] if name else ""), extra[1] if extra else "")
        return found

    def way_to_install(self, missing: str) -> str:
        """Return the pip command that brings the missing module, as far as metadata tells."""
        # Never a command made of the module's name alone: anyone may own that name on an index.
        if (extra := self.requirements.get(canonical(missing))) is None:
            return f"pip install -U {self.distribution}"
        if extra:
            return f"pip install '{self.distribution}[{extra}]'"
        return f"pip install {canonical(missing)}"


def canonical(name: str) -> str:
    """Return a distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(groups: Mapping[str, str]) -> tuple[list[MethodEntry], list[str]]:
    """Return the entry points in some groups of all that is installed, and remarks on bad metadata.

    groups: any mapping whose keys are the groups.
    """
    offers: dict[tuple[str, str, str, str], MethodEntry] = {}
    remarks: list[str] = []
    seen: set[str] = set()
    for dist in distributions():
        try:
            text = dist.read_text("entry_points.txt")
            if not text or "[llmft." not in text:
                continue
            name, version = _identity(dist)
            if canonical(name) in seen:  # the first on the path is the one that is imported
                continue
            seen.add(canonical(name))
            for group, method, value in _entries(text):
                if group in groups:
                    offer = MethodEntry(group, method, value, name, version, dist)
                    offers.setdefault((group, method, name, value), offer)
        except (OSError, ValueError, LookupError) as exc:
            remarks.append(f"metadata of '{getattr(dist, '_path', dist)}' cannot be read: {exc}")
    return sorted(offers.values(), key=lambda o: (o.group, o.name, o.distribution)), remarks


def code_hash(module: str) -> str:
    """Return the SHA-256 of a plugin's code, hex: its package's files, or its one file; '' if none.

    The whole package counts, because a method's module may import its neighbours.
    """
    digest = hashlib.sha256()
    files = list(_code_files(module))
    for name, path in sorted(files):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest() if files else ""


def _identity(dist: Distribution) -> tuple[str, str]:
    # Only the head of the file: the email parser would read the whole README too.
    text = dist.read_text("METADATA") or dist.read_text("PKG-INFO") or ""
    head: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if not colon:
            break
        head.setdefault(key.lower(), value.strip())
    return head["name"], head.get("version", "")


def _entries(text: str) -> Iterator[tuple[str, str, str]]:
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            group = line.strip("[]").strip()
        elif line and line[0] not in "#;":
            name, equals, value = line.partition("=")
            if equals:
                yield group, name.strip(), value.strip()


def _code_files(module: str) -> Iterator[tuple[str, Path]]:
    top, _, rest = module.partition(".")
    try:
        spec = importlib.util.find_spec(top)  # a top-level name: found without importing it
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    if not spec.submodule_search_locations:
        if spec.origin and Path(spec.origin).is_file():
            yield Path(spec.origin).name, Path(spec.origin)
        return
    for root in map(Path, spec.submodule_search_locations):
        # A namespace package is shared by distributions; there only the module's own part counts.
        own = root if spec.origin else root.joinpath(*rest.split("."))
        paths = [own.with_suffix(".py")] if not spec.origin else []
        paths += own.rglob("*") if own.is_dir() else []
        for path in paths:
            if path.suffix in _CODE_SUFFIXES and path.is_file():
                yield path.relative_to(root).as_posix(), path
