"""A finished stage's adapter, sent to the hub with a model card.

Only the user's own login is used. What fails here loses nothing, and never ends a run.
"""

from __future__ import annotations

import json
import logging
import shlex
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from llmft.api.errors import CheckpointError, EnvironmentFault, LlmftError
from llmft.api.push_settings import PushToHub
from llmft.hub.model_card import Place, card, public_base, shareable, without_secrets
from llmft.recipes.job import Job
from llmft.runs import artifacts
from llmft.system import fsio, hub_client
from llmft.system.quiet import before_upstream

log = logging.getLogger("llmft")
T = TypeVar("T")
Files = Mapping[str, str | bytes]
"""What is sent: names, with paths of files as they are or the bytes of others."""
_ANSWER_SECONDS = 10.0
_VOCABULARY = ("tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json")
"""Files of tokens: '/' and '~' are tokens there, and no paths."""


def push_after_run(job: Job, run: Path, note: Callable[[str], None]) -> None:
    """Send what the recipe says to the hub, and tell where it is, or how to do it again."""
    asked = job.recipe.push_to_hub
    if asked is None:
        return
    again = f"the adapter is safe in the run folder; again: llmft push {shlex.quote(str(run))}"
    try:
        note(f"sent to the hub: {push(job, run, asked)}")
    except LlmftError as error:
        fault = error.faults[0]
        note(f"{fault.what}{f' ({fault.fix})' if fault.fix else ''}; {again}")
    except KeyboardInterrupt:
        note(f"not sent to the hub; {again}")
        raise
    except Exception as error:  # the run is done: nothing that goes wrong here may end it
        log.exception("the adapter was not sent to the hub")
        note(f"not sent to the hub: {type(error).__name__}; {again}")


def push(job: Job, run: Path, asked: PushToHub) -> str:
    """Send a finished stage's adapter with its model card, and return where it can be seen.

    Raises EnvironmentFault (E208) where the hub does not take it; the run folder is not changed.
    """
    refuse_no_login()

    def files_of(repo_id: str) -> Files:
        return adapter_files(job, run, asked.model_copy(update={"repo_id": repo_id}))

    return send(files_of, asked, f"llmft: {job.recipe.name}, run {run.name}")


def refuse_no_login() -> None:
    """Raise EnvironmentFault (E208) where the user is not logged in."""
    before_upstream()
    from huggingface_hub import get_token

    if get_token() is None:
        raise _not_sent("nobody is logged in", "hf auth login")


def send(
    files_of: Callable[[str], Files], asked: PushToHub, said: str, *, never_beside: str = ""
) -> str:
    """Send files to the hub as one commit, and return where they can be seen.

    files_of: gives them for a repository's full name. said: the commit's message. never_beside: a
    file that makes something else of what is sent, where the repository has it.
    Raises EnvironmentFault (E208) where the hub does not take them.
    """
    from huggingface_hub import HfApi

    files = files_of(asked.repo_id)
    hub_client.guard()
    api = HfApi(endpoint=hub_client.endpoint())

    def prepare() -> tuple[str, bool, bool]:
        made = api.create_repo(asked.repo_id, private=asked.private, exist_ok=True)
        told = api.model_info(made.repo_id)
        there = {one.rfilename for one in told.siblings or ()}
        return made.repo_id, bool(told.private), never_beside in there

    repo_id, is_private, bad = _within(_ANSWER_SECONDS, prepare)
    if repo_id != asked.repo_id:  # a bare name is the user's own: the card says whose
        files = files_of(repo_id)
    if asked.private and not is_private:
        raise _not_sent(
            f"'{asked.repo_id}' is public, and the recipe asks for a private repository",
            "make it private on the hub, or write private: false",
        )
    if bad:
        raise _not_sent(
            f"'{repo_id}' has the file {never_beside}, so that what is sent would be loaded as"
            " something else",
            "name another repository: --repo-id my-name/my-model",
        )
    return _within(asked.timeout_seconds, lambda: committed(api, repo_id, files, said))


def committed(api: Any, repo_id: str, files: Files, said: str, gone: Collection[str] = ()) -> str:
    """Send files as one commit, over Xet where the client can, else or again over plain HTTP.

    gone: the names of files that the commit takes away.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    def commit(over_xet: bool) -> str:
        with ExitStack() as opened:
            operations: list[Any] = [CommitOperationDelete(name) for name in gone]
            for name, content in files.items():
                # The client takes open files as the wish for plain HTTP.
                plain = isinstance(content, str) and not over_xet
                source = opened.enter_context(open(content, "rb")) if plain else content
                operations.append(CommitOperationAdd(name, source))
            return str(api.create_commit(repo_id, operations, commit_message=said).repo_url)

    try:
        return commit(over_xet=True)
    except OSError as error:
        if not _uses_xet() or getattr(error, "response", None) is not None:
            raise
        log.warning("Xet failed (%s); sending over plain HTTP", error)
        return commit(over_xet=False)


def _uses_xet() -> bool:
    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet") is not None


def adapter_files(job: Job, run: Path, asked: PushToHub) -> Files:
    """Return what is sent of a stage's adapter.

    Raises CheckpointError where the stage has not finished, or a file of it is damaged.
    """
    from llmft.modeling.heads import loads_in_peft

    recipe = job.recipe
    folder = artifacts.stage_folder(run, recipe.sent_stage(asked))
    stage, source = recipe.stage(folder.name), folder / artifacts.ADAPTER
    bound = job.stage(stage.name)
    if stage.alignment is None:
        what = f"stage '{stage.name}' trained nothing that could be uploaded"
        raise CheckpointError("E402", what, fix="name a stage that trains an adapter: --stage")
    base = [public_base(recipe.model.path), *bound.stands_on]
    # Of an adapter on merged stages nothing can be loaded by that name, which is right.
    files = folder_files(source, {"base_model_name_or_path": " + ".join(base)})
    adapter = bound.model_adapter
    assert adapter is not None  # the stage trained it
    text = card(
        recipe,
        stage,
        adapter.method,
        artifacts.result_of(folder),
        fsio.read_json(run / "lock.json", artifacts.PUT_BACK),
        Place(repo_id=asked.repo_id),
        loads_in_peft=loads_in_peft(source),
        is_model=adapter.trains_base,
        stands_on=bound.stands_on,
        mergeable=adapter.mergeable,
    )
    return {"README.md": text.encode(), **files}


def folder_files(source: Path, adapter_config: Mapping[str, Any] | None = None) -> Files:
    """Return the files of a folder of ours as they are sent, but its card: no path, no key.

    adapter_config: what that file says instead.
    Raises CheckpointError where a file is damaged, or is none of the folder's.
    """
    fsio.verify_folder(source)
    files: dict[str, str | bytes] = {
        str(path.relative_to(source)): str(path)
        for path in sorted(source.rglob("*"))
        if path.is_file() and path.name not in (fsio.MANIFEST, "README.md")
    }
    for name in [name for name in files if name.endswith(".json") and name not in _VOCABULARY]:
        config = json.loads((source / name).read_text("utf-8"))
        if name == "adapter_config.json":
            config |= adapter_config or {}
        cleaned = without_secrets(json.dumps(shareable(config), indent=2))
        files[name] = f"{cleaned}\n".encode()
    return files


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Return what the work returns, or raise E208 where it fails or takes too long.

    The hub's client waits without end for a server that never answers.
    """
    done: list[T] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            done.append(work())
        except Exception as error:  # the client speaks through libraries with errors of their own
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise _refused(failed[0]) from failed[0]
    if not done:
        fix = "set HF_HUB_DISABLE_XET=1 if Xet hangs in your network" if _uses_xet() else ""
        raise _not_sent(f"the hub did not answer within {seconds:.0f} seconds", fix)
    return done[0]


def _refused(error: Exception) -> EnvironmentFault:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return _not_sent(f"the hub refuses the login ({status})", "hf auth login")
    if status is not None:
        return _not_sent(f"the hub answered {status}")
    lines = str(error).strip().splitlines() or [""]
    told = f"{type(error).__name__} {lines[0][:200]}".strip().rstrip(".")
    return _not_sent(f"the hub cannot be reached: {told}")


def _not_sent(why: str, fix: str = "") -> EnvironmentFault:
    return EnvironmentFault("E208", f"not sent to the hub: {why}", fix=fix)
