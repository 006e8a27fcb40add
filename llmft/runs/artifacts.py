"""What a stage leaves behind: its adapter, its result and its samples; and how they come back."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmft.api import Adapter, Alignment, StageResult
from llmft.api.errors import CheckpointError, StageError
from llmft.registry.return_checks import violation
from llmft.system import fsio

ADAPTER = "adapter"
RESULT = "result.json"
ROWS = "rows.jsonl"
RUN = "run.json"
_MOST_LETTERS = 100  # of a stage's name; a recipe allows fewer
_MOST_STAGES = 10_000
PUT_BACK = "restore the file, or start a new run without --resume"


def save_stage(
    folder: Path,
    run_id: str,
    made_by: Iterable[Adapter[Any] | Alignment[Any]],
    model: Any,
    result: StageResult,
    identity: str = "",
    card: Callable[[bool], str] | None = None,
    tokenizer: Any = None,
) -> None:
    """Write what a stage trained, then its result; the result says that the stage is finished.

    made_by: the adapter and the alignment; each writes its own part into one folder. Empty for a
    task, which has written its rows itself. identity: the hash of what the stage was made from.
    card: returns the text of the adapter's README.md, told whether the files are as PEFT has them.
    tokenizer: is saved beside the adapter, with its chat template.

    Raises StageError where a trained weight is not finite: such an adapter is never published.
    """
    if makers := tuple(made_by):
        _save_adapter(folder / ADAPTER, run_id, makers, model, card, tokenizer)
    made = {"run_id": run_id, "fingerprint": identity, **asdict(result)}
    if (folder / ROWS).is_file():
        made["rows_sha256"] = fsio.sha256(folder / ROWS)
    fsio.write_json(folder / RESULT, made)


def _save_adapter(
    folder: Path,
    run_id: str,
    makers: Iterable[Adapter[Any] | Alignment[Any]],
    model: Any,
    card: Callable[[bool], str] | None,
    tokenizer: Any,
) -> None:
    import torch

    from llmft.modeling.heads import loads_in_peft
    from llmft.modeling.precision import as_stored

    with as_stored(model):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                what = f"the trained weight '{name}' is not finite; nothing saved"
                raise StageError("E301", what)
        with fsio.staged_folder(folder, run_id) as staged:
            for method in makers:
                method.save(model, staged)
                if isinstance(method, Adapter) and not any(staged.iterdir()):
                    raise violation(method, "'save' writes no file, so what was trained is lost")
            if tokenizer is not None:
                tokenizer.save_pretrained(staged)
            if card is not None:  # in place of PEFT's empty template
                (staged / "README.md").write_text(card(loads_in_peft(staged)), "utf-8")


def result_of(folder: Path) -> dict[str, Any]:
    """Return what a finished stage wrote of itself. Raises CheckpointError where it is damaged."""
    return fsio.read_json(
        folder / RESULT, f"run the stage again with --from {shlex.quote(folder.name)}"
    )


def verify_stage(folder: Path) -> None:
    """Raise CheckpointError unless what a finished stage made is there as it was written."""
    again = f"run the stage again with --from {shlex.quote(folder.name)}"
    wanted = result_of(folder).get("rows_sha256")
    if wanted is None:
        fsio.verify_folder(folder / ADAPTER, again)
        return
    rows = folder / ROWS
    if not (rows.is_file() and fsio.sha256(rows) == wanted):
        raise CheckpointError("E401", f"'{rows}' is not what the stage wrote", fix=again)


def verify_as_read(folder: Path) -> Path:
    """Return a finished stage's folder after `verify_stage`, which runs again only at a change.

    Whatever reads what a stage made goes through here first.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    states = [(path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_ino) for path in files]
    seen = hash((tuple(map(str, files)), tuple(states)))
    if _verified.get(folder) != seen:
        verify_stage(folder)
        _verified[folder] = seen
    return folder


_verified: dict[Path, int] = {}


def stage_folder(run: Path, stage: str | None) -> Path:
    """Return the folder of a finished stage of a run: the one named, or the last one finished.

    Raises CheckpointError where the run or the stage is not there, or is not finished.
    """
    stages = run / "stages"
    if not stages.is_dir():
        raise CheckpointError(
            "E402", f"'{run}' is not a run folder", fix="name a folder that 'llmft run' printed"
        )
    finished = [folder.name for folder in _finished(run)]
    if stage is not None and stage not in finished:
        raise CheckpointError(
            "E402",
            f"the run has no finished stage '{stage}' (finished: {', '.join(finished) or 'none'})",
        )
    if not finished:
        raise CheckpointError("E402", f"no stage of '{run}' is finished")
    return stages / (stage or finished[-1])


def stage_that_made(kind: str, run: Path, stage: str | None, *, fix: str) -> Path:
    """Return the folder of a finished stage that made this kind: the one named, or the last.

    kind: what an alignment or a task `produces`, such as policy. fix: suggested if a run has none.
    Raises CheckpointError where there is none, or the one named made another kind.
    """
    last, wanted = stage_folder(run, stage), _words(kind)
    made = str(result_of(last)["produces"])
    if made == kind:
        return verify_as_read(last)
    if stage is not None:
        raise CheckpointError(
            "E402",
            f"stage '{stage}' made {_words(made)}, not {wanted}",
            fix=f"name a stage that made {wanted}",
        )
    found = [folder for folder in _finished(run) if result_of(folder)["produces"] == kind]
    if not found:
        raise CheckpointError("E402", f"'{run}' has no finished stage that made {wanted}", fix=fix)
    return verify_as_read(found[-1])


def _finished(run: Path) -> list[Path]:
    folders = [run / "stages" / name for name in stages_of(run)]
    return [folder for folder in folders if (folder / RESULT).is_file()]


def stages_of(run: Path) -> list[str]:
    """Return the names of a run's stages; CheckpointError where one could not be a folder's."""
    names: list[str] = fsio.read_json(run / RUN, PUT_BACK)["stages"]
    if len(names) > _MOST_STAGES or len({str(name) for name in names}) < len(names):
        raise CheckpointError("E401", f"'{run / RUN}' is damaged", fix=PUT_BACK)
    for name in names:
        odd = not isinstance(name, str) or "/" in name or "\0" in name or len(name) > _MOST_LETTERS
        if odd or name in ("", ".", ".."):
            raise CheckpointError("E401", f"'{run / RUN}' is damaged", fix=PUT_BACK)
    return names


def _words(kind: str) -> str:
    text = kind.replace("_", " ")
    return text if text.endswith("s") else f"a {text}"
