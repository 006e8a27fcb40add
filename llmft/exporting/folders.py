"""`llmft export`: a run's adapter as other programs take it, or merged where they do not."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmft.api.errors import CheckpointError, RecipeError
from llmft.exporting import gguf, mlx, ollama
from llmft.exporting.merging import Merged, merge, mergeable_adapter, refuse_existing
from llmft.exporting.probes import Distance
from llmft.hub.model_card import Place, card, merged_card
from llmft.inference.trained import TrainedStage
from llmft.modeling.rope_scaling import positions_of
from llmft.runs.upstream import load_options
from llmft.system import fsio

Kind = Literal["peft", "hf", "vllm", "mlx", "gguf", "ollama"]
CONFIG = "adapter_config.json"
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank (vllm/config/lora.py, MaxLoRARanks)."""


@dataclass(frozen=True)
class Exported:
    """What was written. command: what to type next. notes: what a person should know.

    card: of a merged model, gives its card as a repository of the hub has it, by its name.
    beside: what such a repository has besides the folder's files: texts by name.
    """

    folder: Path
    to: Kind
    command: str
    notes: tuple[str, ...] = ()
    error: Distance | None = None
    card: Callable[[str], str] | None = None
    beside: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LlamaCpp:
    """What was asked of llama.cpp. folder: where its programs are; None: on PATH."""

    folder: Path | None = None
    quantization: str | None = None


def export(
    trained: TrainedStage, to: Kind, output: Path, llama_cpp: LlamaCpp | None = None
) -> Exported:
    """Write a folder that another program takes, and return how it is used there.

    to: `peft`, the adapter as PEFT loads it; `hf`, merged, as transformers loads it; `vllm`, an
    adapter that vLLM can hold beside its base; `mlx`, merged, as mlx-lm loads it; `gguf`, merged,
    as one file for llama.cpp; `ollama`, that with a Modelfile.
    Raises RecipeError (E090) where the folder is there already, or the program cannot take it, and
    EnvironmentFault (E206, E216) where llama.cpp's programs are missing or fail.
    """
    refuse_existing(output)
    if to in ("gguf", "ollama"):
        return _with_llama_cpp(trained, to, output, llama_cpp or LlamaCpp())
    if to == "hf":
        merged = merge(trained, output)
        command = f"vllm serve {shlex.quote(str(output))}"
        notes = _why_off(merged)
        return Exported(output, to, command, notes, error=merged.error, card=merged.card)
    if to == "mlx":
        return _for_mlx(trained, output)
    config = peft_config(trained)
    adapter = trained.bound.model_adapter
    closed = adapter is not None and not adapter.mergeable
    here = "serve it here: llmft serve RUN; it cannot be merged, either"
    if below := trained.bound.stands_on:
        raise RecipeError(
            "E090",
            f"the adapter does not stand on the base alone: {', '.join(below)} merged into it",
            fix=here if closed else "merge it too: llmft merge RUN --output DIR",
        )
    options: list[str] = []
    if to == "vllm":
        if faults := list(_not_for_vllm(config, _ends(trained))):
            to_merge = "merge it: llmft export RUN --to hf --output DIR; then: vllm serve DIR"
            what = f"vLLM cannot take this adapter: {'; '.join(faults)}"
            raise RecipeError("E090", what, fix=here if closed else to_merge)
        options = ["--max-lora-rank", str(next(rank for rank in _RANKS if rank >= config["r"]))]
    base = Path(trained.base.path)
    where = str(base.resolve()) if base.is_dir() else trained.base.path
    config |= {"base_model_name_or_path": where, "revision": trained.base.revision}
    with fsio.staged_folder(output, trained.run.name) as staged:
        _copy_checked(trained.adapter_folder, staged)
        (staged / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        (staged / "README.md").write_text(_card(trained, output.name), "utf-8")
        template = (staged / "chat_template.jinja").is_file()
    notes = _notes(trained, to)
    if to == "peft":
        revision = f', revision="{trained.base.revision}"' if trained.base.revision else ""
        base_code = f'AutoModelForCausalLM.from_pretrained("{where}"{revision})'
        code = f'PeftModel.from_pretrained({base_code}, "{output}")'
        return Exported(output, to, code, notes)
    words = ["vllm", "serve", where]
    words += ["--revision", trained.base.revision] if trained.base.revision else []
    words += ["--enable-lora", *options, "--lora-modules", f"{trained.job.recipe.name}={output}"]
    words += ["--tokenizer", str(output)] if trained.job.recipe.model.tokenizer else []
    words += ["--chat-template", f"{output}/chat_template.jinja"] if template else []
    if trained.base.source.rope_scaling:
        words += ["--hf-overrides", json.dumps(positions_of(trained.base.config))]
    return Exported(output, to, shlex.join(words), notes)


def _copy_checked(adapter: Path, staged: Path) -> None:
    """Copy an adapter's files; CheckpointError (E401) where they are not those of its manifest.

    The copies are checked, as the folder may change in between: another process can train on.
    """
    shutil.copytree(adapter, staged, dirs_exist_ok=True)
    try:
        fsio.verify_folder(staged)
    except CheckpointError as error:
        what = f"'{adapter}' changed while it was exported"
        raise CheckpointError("E401", what, fix="export it again") from error
    (staged / fsio.MANIFEST).unlink()  # the folder gets one of its own


def _for_mlx(trained: TrainedStage, output: Path) -> Exported:
    """Write the merged model with a config that mlx-lm reads as transformers does."""
    mergeable_adapter(trained)
    mlx.refuse_unknown(trained.base.config.model_type)
    asked = trained.dataset.ask("a question") if trained.dataset is not None else ""
    merged = merge(trained, output, config=mlx.with_older_names)
    chat = not isinstance(asked, str)
    notes = (*mlx.notes(output, asks_chat=chat), *_why_off(merged))
    command = mlx.command(output, asks_chat=chat)
    return Exported(output, "mlx", command, notes, merged.error, merged.card)


def _why_off(merged: Merged) -> tuple[str, ...]:
    """Return why a merged model is far from its run, where the base was quantised in training."""
    if not merged.unquantised:
        return ()
    return (
        "the base was quantised in training; merged is the full-precision one, so how far a"
        " log-probability moved is mostly the quantisation's",
    )


def _with_llama_cpp(trained: TrainedStage, to: Kind, output: Path, asked: LlamaCpp) -> Exported:
    """Write a GGUF file, for Ollama with a Modelfile; what can be refused is before that."""
    adapter = mergeable_adapter(trained)
    kind = gguf.quantisation_of(asked.quantization, trained)
    tools = gguf.find_tools(asked.folder, kind)
    bos = gguf.wants_bos(trained)
    derived = ollama.derive(trained, adds_bos=bos) if to == "ollama" else None
    beside: dict[str, str] = {}
    with fsio.staged_folder(output, trained.run.name) as staged:
        made = gguf.convert(trained, tools, kind, staged, bos=bos)

        def card(repo_id: str = "") -> str:
            where = _commands(made.file.name, Path("."), with_ollama=derived is not None)
            there = _hub_commands(made.file.name, repo_id, kind, with_ollama=derived is not None)
            return merged_card(
                trained.job.recipe,
                trained.bound.spec,
                adapter.method,
                trained.result,
                trained.lock,
                dtype=f"llama.cpp's type {kind}",
                error=f"Against the run's own model, before the conversion to GGUF: {made.error}."
                + "".join(f" {note}." for note in made.notes),
                gguf=there if repo_id else where,
            )

        (staged / "README.md").write_text(card(), "utf-8")
        if derived is not None:
            stops, settings = ollama.stops_of(trained), ollama.parameters(made.settings)
            written = ollama.modelfile(derived, made.file.name, stops, settings)
            (staged / "Modelfile").write_text(written, "utf-8")
            beside = ollama.hub_files(derived, stops, settings)
    command = _commands(made.file.name, output, with_ollama=derived is not None)[-1]
    notes = (*made.notes, *(derived.notes if derived else ()))
    return Exported(output, to, command, notes, made.error, card, beside)


def _commands(file: str, folder: Path, *, with_ollama: bool) -> list[str]:
    """Return what to type to load a GGUF file: with llama.cpp, and with Ollama."""
    words = [["llama-server", "--model", str(folder / file), "--jinja"]]
    if with_ollama:
        name = Path(file).stem.lower()
        words.append(["ollama", "create", name, "--file", str(folder / "Modelfile")])
    return [shlex.join(one) for one in words]


def _hub_commands(file: str, repo_id: str, kind: str, *, with_ollama: bool) -> list[str]:
    """Return what to type to load a GGUF file of a repository: with llama.cpp, and with Ollama."""
    words = [["llama-server", "--hf-repo", repo_id, "--hf-file", file, "--jinja"]]
    words += [["ollama", "run", f"hf.co/{repo_id}:{kind}"]] if with_ollama else []
    return [shlex.join(one) for one in words]


def peft_config(trained: TrainedStage) -> dict[str, Any]:
    """Return the settings of a stage's adapter as PEFT has them; RecipeError where it has none."""
    path = trained.adapter_folder / CONFIG
    adapter = trained.bound.model_adapter
    if adapter is None or not path.is_file():
        name = adapter.method if adapter else trained.bound.work.method
        raise RecipeError(
            "E090",
            f"PEFT does not know what '{name}' made",
            fix="merge it: llmft merge RUN --output DIR"
            if adapter is not None and adapter.mergeable
            else "use the run itself: llmft generate RUN, llmft chat RUN",
        )
    return fsio.read_json(path, "run the stage again")


def _ends(trained: TrainedStage) -> list[str]:
    """Return the names of the base's embedding and output layer."""
    base = trained.base.empty()
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    return [name for name, module in base.named_modules() if any(module is end for end in ends)]


def _not_for_vllm(config: Mapping[str, Any], ends: Sequence[str]) -> Iterator[str]:
    """Yield why vLLM refuses an adapter, or would compute something else with it.

    The rules of vllm/lora/peft_helper.py; it reads one rank and one alpha for all layers.
    ends: the names of the base's embedding and output layer: whether these may have an update, a
    model's own code says there (embedding_modules).
    """
    if config.get("peft_type") != "LORA":
        yield f"it is a {config.get('peft_type')}, and vLLM takes LoRA only"
        return
    if config.get("use_dora"):
        yield "DoRA is not supported there"
    if config.get("bias", "none") != "none":
        yield f"it trained biases (bias: {config['bias']})"
    if whole := config.get("modules_to_save"):
        yield f"it holds whole layers (modules_to_save: {', '.join(whole)})"
    if config.get("trainable_token_indices"):
        yield "it holds rows of the embedding (trainable_token_indices)"
    named = config.get("target_modules") or ()
    if found := [end for end in ends if any(f".{end}".endswith(f".{one}") for one in named)]:
        yield f"it changes the embedding or the output layer ({', '.join(found)})"
    if config.get("target_parameters"):
        yield "it changes experts by their parameters (target_parameters)"
    for name in ("rank_pattern", "alpha_pattern"):
        if config.get(name):
            yield f"its layers differ ({name}), and vLLM would scale them all alike"
    if config["r"] > _RANKS[-1]:
        yield f"its rank is {config['r']}, and {_RANKS[-1]} is the most"


def _card(trained: TrainedStage, name: str) -> str:
    adapter = trained.bound.model_adapter
    assert adapter is not None  # `peft_config` has seen to it
    return card(
        trained.job.recipe,
        trained.bound.spec,
        adapter.method,
        trained.result,
        trained.lock,
        Place(repo_id=name),
        loads_in_peft=True,
    )


def _notes(trained: TrainedStage, to: str) -> tuple[str, ...]:
    notes = []
    if trained.base.new_tokens:
        notes.append(
            "tokens were added to the tokenizer: first"
            f" base.resize_token_embeddings({trained.base.vocabulary}, mean_resizing=False)"
        )
    if trained.base.source.stop:
        notes.append(
            "answers end where model.stop says, and an adapter cannot say so: set"
            f" base.generation_config.eos_token_id = {trained.base.answer_ends}"
        )
    if trained.base.source.rope_scaling and to == "peft":
        stretched = positions_of(trained.base.config)
        notes.append(
            "the base's positions are stretched, and an adapter cannot say so: load the base with"
            " config=config, after config = AutoConfig.from_pretrained(...) and "
            + "; ".join(f"config.{name} = {value}" for name, value in stretched.items())
        )
    if load_options(trained.job.recipe, trained.bound.model_adapter):
        notes.append(
            "the adapter was trained beside a quantised base; beside the full-precision one its"
            " answers differ a little: llmft verify export says by how much"
        )
    return tuple(notes)
