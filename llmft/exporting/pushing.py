"""`llmft push RUN --merged` and `--gguf TYPE`: a merged run on the hub, also for llama.cpp."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from llmft.api.errors import RecipeError
from llmft.api.push_settings import PushToHub
from llmft.exporting import gguf, ollama
from llmft.exporting.folders import Kind, LlamaCpp, export
from llmft.exporting.probes import Distance
from llmft.hub import upload
from llmft.inference.trained import TrainedStage
from llmft.system import fsio


@dataclass(frozen=True)
class Pushed:
    """What was sent. url: where it can be seen. error: of merging."""

    url: str
    error: Distance | None
    notes: tuple[str, ...] = ()


def push_model(trained: TrainedStage, asked: PushToHub, llama_cpp: LlamaCpp | None) -> Pushed:
    """Send a merged run with its model card to the hub, and return where it can be seen.

    It is written beside the run first, and removed. A GGUF file is sent with what Ollama reads
    beside one, where a Go template can state how the run asks.

    llama_cpp: as a GGUF file, by these programs and of this type; None: as transformers loads it.
    Raises what `export` raises, and EnvironmentFault (E208) where the hub does not take it.
    """
    upload.refuse_no_login()
    to: Kind = "hf"
    notes: tuple[str, ...] = ()
    if llama_cpp is not None:
        to, notes = "ollama", ()
        try:
            ollama.derive(trained, adds_bos=gguf.wants_bos(trained))
        except RecipeError as error:
            to, notes = "gguf", (f"nothing is sent for Ollama: {error.faults[0].what}",)
    with (
        fsio.disk_errors(trained.run),
        tempfile.TemporaryDirectory(dir=trained.run.parent, prefix=fsio.STAGING) as scratch,
    ):
        made = export(trained, to, Path(scratch, "model"), llama_cpp)
        card = made.card
        assert card is not None  # a merged model has one
        files = dict(upload.folder_files(made.folder))
        files |= {name: text.encode() for name, text in made.beside.items()}
        url = upload.send(
            lambda repo_id: {"README.md": card(repo_id).encode(), **files},
            asked,
            f"llmft: {trained.job.recipe.name}, run {trained.run.name}",
            never_beside="adapter_config.json" if to == "hf" else "",
        )
    return Pushed(url, made.error, (*notes, *made.notes))
