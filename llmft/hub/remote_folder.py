"""A folder elsewhere, by its address: a repository on the hub, or whatever fsspec has a client for.

Credentials are those of the environment, as each client finds them; an address holds none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from llmft.api.errors import EnvironmentFault, LlmftError, RecipeError
from llmft.api.shown_text import escaped
from llmft.hub.model_card import without_secrets
from llmft.system import hub_client
from llmft.system.quiet import before_upstream

Content = Path | bytes
_ANSWER_SECONDS = 60.0
_HUB = "hf://"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_FIX = "give one such as s3://bucket/folder, hf://user/repository or file:///folder"


class RemoteFolder(Protocol):
    """Files by their names, which have '/' between folders; each is there whole or not at all."""

    def names(self) -> set[str]:
        """Return the names of all files."""

    def read(self, name: str) -> bytes:
        """Return a small file. Raises FileNotFoundError where it is not there."""

    def fetch(self, name: str, target: Path) -> None:
        """Write a file here, at `target`. Raises FileNotFoundError where it is not there."""

    def put(self, files: Mapping[str, Content], gone: Collection[str], said: str) -> None:
        """Write files, in their order, and then take others away. said: what is done, in words."""


def remote_folder(address: str) -> RemoteFolder:
    """Return the folder at an address that was typed; nothing is contacted yet.

    Raises RecipeError (E228) where it is no address that can be written to, or holds a password.
    """
    protocol = found[1] if (found := _PROTOCOL.match(address)) else "file"
    if not address or "::" in address or not address.isprintable() or address != address.strip():
        raise RecipeError("E228", "this is not the plain address of a folder", fix=_FIX)
    rest = address.removeprefix(f"{protocol}://")
    if "?" in rest or without_secrets(address) != address:
        what = "the address holds what looks like a password or a key"
        fix = "leave it out; credentials are read from the environment, as the client does"
        raise RecipeError("E228", what, fix=fix)
    if protocol in ("file", "local") and rest != address and not rest.startswith("/"):
        what = f"'{escaped(address)}' has no full path: what follows '//' would be a machine"
        raise RecipeError("E228", what, fix="give a path, or all of it, such as file:///folder")
    if protocol == "memory":
        what = "what is kept at 'memory://' is gone when the process ends"
        raise RecipeError("E228", what, fix=_FIX)
    if protocol == "hf":
        if not _REPOSITORY.fullmatch(rest):
            what = f"'{address}' is not a repository of models on the hub"
            raise RecipeError("E228", what, fix="give it as hf://user/repository")
        return HubRepository(rest)
    return FileSystemFolder(address)


class FileSystemFolder:
    """A folder of a file system or an object store, through fsspec."""

    def __init__(self, address: str) -> None:
        from fsspec.core import url_to_fs

        # An instance of its own: others have listings that may be old.
        own = {"skip_instance_cache": True, "use_listings_cache": False}
        try:
            self._system, root = url_to_fs(address, **own)
        except ImportError as error:  # it says which package it wants
            raise EnvironmentFault(
                "E206",
                f"the client for '{address}' is not installed",
                fix=f"pip install what it names: {error}",
            ) from error
        except ValueError as error:
            what = f"there is no client for '{address}'"
            raise RecipeError("E228", what, fix=_FIX) from error
        self._root = str(root).rstrip("/")
        if not self._root:
            raise RecipeError("E228", f"'{address}' names no folder", fix=_FIX)

    def names(self) -> set[str]:
        self._system.invalidate_cache()
        try:
            found = self._system.find(self._root)
        except FileNotFoundError:
            return set()
        return {str(path).removeprefix(f"{self._root}/") for path in found}

    def read(self, name: str) -> bytes:
        return bytes(self._system.cat_file(self._at(name)))

    def fetch(self, name: str, target: Path) -> None:
        self._system.get_file(self._at(name), str(target))

    def put(self, files: Mapping[str, Content], gone: Collection[str], said: str) -> None:
        for name, content in files.items():
            place = self._at(name)
            try:
                self._write(place, content)
            except FileNotFoundError:  # of systems with folders
                self._system.makedirs(place.rpartition("/")[0], exist_ok=True)
                self._write(place, content)
        for name in gone:
            with suppress(FileNotFoundError):
                self._system.rm_file(self._at(name))

    def _write(self, place: str, content: Content) -> None:
        if isinstance(content, bytes):
            self._system.pipe_file(place, content)
        else:
            self._system.put_file(str(content), place)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


class HubRepository:
    """A private repository of the user's on the hub; what is put there is one commit."""

    def __init__(self, repo_id: str) -> None:
        before_upstream()
        hub_client.guard()
        from huggingface_hub import HfApi

        self._repo_id, self._ready = repo_id, False
        self._api = HfApi(endpoint=hub_client.endpoint())

    def names(self) -> set[str]:
        from huggingface_hub import errors

        try:
            info = self._api.model_info(self._repo_id, timeout=_ANSWER_SECONDS)
        except errors.RepositoryNotFoundError as error:
            if getattr(error.response, "status_code", 0) == 401:
                raise
            return set()
        return {one.rfilename for one in info.siblings or ()}

    def read(self, name: str) -> bytes:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            self.fetch(name, target := Path(folder) / "file")
            return target.read_bytes()

    def fetch(self, name: str, target: Path) -> None:
        import shutil
        import tempfile

        from huggingface_hub import errors

        # Not into the user's cache: a checkpoint is not a model.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".hub-") as cache:
            try:
                place = self._api.hf_hub_download(self._repo_id, name, cache_dir=cache)
            except errors.LocalEntryNotFoundError as error:  # whether it is there is not known
                raise ConnectionError(f"'{name}' cannot be fetched now") from error
            except (errors.EntryNotFoundError, errors.RepositoryNotFoundError) as error:
                raise FileNotFoundError(name) from error
            shutil.move(Path(place).resolve(), target)

    def put(self, files: Mapping[str, Content], gone: Collection[str], said: str) -> None:
        from llmft.hub.upload import committed

        if not self._ready:
            self._make_private()
        sent = {n: str(c) if isinstance(c, Path) else c for n, c in files.items()}
        committed(self._api, self._repo_id, sent, f"llmft: {said}", gone)

    def _make_private(self) -> None:
        """Make the repository where it is not there; raise E228 where everybody can read it."""
        self._api.create_repo(self._repo_id, private=True, exist_ok=True)
        if not self._api.model_info(self._repo_id, timeout=_ANSWER_SECONDS).private:
            raise EnvironmentFault(
                "E228",
                f"'{_HUB}{self._repo_id}' is public, and checkpoints hold answers and numbers of"
                " your rows",
                fix="make it private on the hub, or give another repository",
            )
        self._ready = True


def fault(error: BaseException, address: str, doing: str) -> LlmftError:
    """Return what a client of somebody else's has raised, as one error without secrets (E228).

    doing: what could not be done with the address, such as 'be written to'.
    """
    if isinstance(error, LlmftError):
        return error
    status = getattr(getattr(error, "response", None), "status_code", None)
    lines = str(error).strip().splitlines() or [""]
    told = getattr(error, "strerror", None) or lines[0]  # without the name of a file
    told = re.sub(r"://[^/\s@]*@", "://", told)
    told = re.sub(r"\?\S*", "", told)[:200].rstrip(".")  # what follows it may be a signature
    name = type(error).__name__
    why = f"status {status}" if status is not None else f"{name}: {told}" if told else name
    return EnvironmentFault(
        "E228",
        without_secrets(f"'{address}' cannot {doing} ({why})"),
        fix="check the address, the network and the credentials",
    )
