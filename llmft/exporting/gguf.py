"""`llmft export --to gguf`: a merged run as one file for llama.cpp, by llama.cpp's own programs.

The converter and the quantiser are the user's: those of the llama.cpp folder that is named on the
command line, else those on PATH. What the working folder holds is never run.
"""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from llmft.api.errors import EnvironmentFault, RecipeError
from llmft.exporting import tokenizer_model
from llmft.exporting.merging import merge, stored_dtype
from llmft.exporting.probes import Distance
from llmft.inference.trained import TrainedStage
from llmft.system import fsio
from llmft.system.nearest import did_you_mean
from llmft.system.processes import found_program, run_program, run_python, run_script

CONVERTER, QUANTISER = "convert_hf_to_gguf.py", "llama-quantize"
SET_METADATA = "gguf-py/gguf/scripts/gguf_set_metadata.py"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Names of tools/quantize/quantize.cpp. Left out: those that need an importance matrix, and the
# ternary ones, which are for models that were trained so.
QUANTISED = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "Q2_K",
)  # fmt: skip
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_OTHERS = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback quantization")
_OTHER = re.compile(r"ncols\s+(\d+) not divisible by\s+(\d+)[^\n]*falling back to\s+(\w+)")
_MISSING = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")
_SHOWN = 300


@dataclass(frozen=True)
class Tools:
    """llama.cpp's programs. quantiser: None to take the llama_cpp package's."""

    converter: Path
    quantiser: Path | None

    @property
    def folder(self) -> Path:
        """The folder that holds the converter, and the modules that it imports."""
        return self.converter.parent


@dataclass(frozen=True)
class Converted:
    """A GGUF file. error: of merging. settings: the model's generation config.

    notes: what a person should know of the file.
    """

    file: Path
    error: Distance
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()


def quantisation_of(name: str | None, trained: TrainedStage) -> str:
    """Return the type of a file by llama.cpp's name; default: the one of the base's own files.

    Raises RecipeError (E090) where llama.cpp has no such type.
    """
    if name is None:
        stored = stored_dtype(trained.base)
        return next((kind for kind, dtype in DTYPES.items() if dtype == stored), "F16")
    found = _ALIASES.get(name.upper(), name.upper())
    known = [*DTYPES, *QUANTISED]
    if found not in known:
        what = f"--quantization: llama.cpp has no type '{name}' (have: {', '.join(known)})"
        raise RecipeError("E090", what, fix=did_you_mean(found, known))
    return found


def find_tools(folder: Path | None, quantisation: str) -> Tools:
    """Return llama.cpp's programs: those of the folder named, else those on PATH.

    Raises EnvironmentFault (E216) where one is missing, with what to type.
    """
    if folder is not None:
        converter = folder / CONVERTER
        if not converter.is_file():
            what = f"--llama-cpp: '{folder}' holds no {CONVERTER}"
            raise EnvironmentFault("E216", what, fix="name llama.cpp's own folder")
    else:
        found = found_program(CONVERTER)
        if found is None:
            raise EnvironmentFault(
                "E216",
                f"{CONVERTER}, llama.cpp's converter, is not on PATH",
                fix="git clone https://github.com/ggml-org/llama.cpp, and add"
                " --llama-cpp PATH/TO/llama.cpp",
            )
        converter = found
    if quantisation in DTYPES or quantisation == "Q8_0":  # the converter writes these itself
        return Tools(converter.absolute(), None)
    near = [converter.parent / place / QUANTISER for place in ("", "build/bin", "bin")]
    quantiser = next((path.absolute() for path in near if path.is_file()), None)
    quantiser = quantiser or found_program(QUANTISER)
    if quantiser is None and find_spec("llama_cpp") is None:
        raise EnvironmentFault(
            "E216",
            f"{QUANTISER} is neither beside the converter nor on PATH, and the package"
            " llama-cpp-python is not installed",
            fix="build it (cmake -B build && cmake --build build --target llama-quantize), or pip"
            " install llama-cpp-python; or write --quantization Q8_0, which needs neither",
        )
    return Tools(converter.absolute(), quantiser)


def convert(
    trained: TrainedStage, tools: Tools, quantisation: str, staged: Path, *, bos: bool
) -> Converted:
    """Write the merged run into a folder as one GGUF file of a type, and return it.

    bos: whether the file is to tell runtimes to put a BOS before each text, see `wants_bos`. The
    merged model is written beside the file, and removed.
    Raises EnvironmentFault (E206, E216) where the converter or the quantiser fails.
    """
    notes: tuple[str, ...] = ()
    dtype = DTYPES.get(quantisation) or stored_dtype(trained.base)
    if dtype not in DTYPES.values():
        dtype = "float16"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", trained.job.recipe.name)
    file = staged / f"{name}-{quantisation}.gguf"
    with tempfile.TemporaryDirectory(dir=staged, prefix="merging-") as scratch:
        merged = merge(trained, Path(scratch, name), dtype=dtype)
        tokenizer_model.write_beside(trained.base.tokenizer, merged.folder)
        kinds = {dtype: kind for kind, dtype in DTYPES.items()}
        direct = quantisation in DTYPES or quantisation == "Q8_0"
        kind = quantisation if direct else kinds[dtype]
        first = file if direct else Path(scratch, f"{kind}.gguf")
        words = [str(merged.folder), "--outfile", str(first), "--outtype", kind.lower()]
        with Path(scratch, "told").open("w+b") as told:
            code = run_script(
                tools.converter, *words, "--model-name", trained.job.recipe.name,
                modules=[tools.folder, tools.folder / "gguf-py"], out=told,
            )  # fmt: skip
            if code or not first.is_file():
                raise _failed("the converter", tools.converter, told, code)
            if not bos and _adds_bos(trained.base.tokenizer):
                _add_no_bos(tools, first, told)
            if not direct:
                notes = _quantise(tools, first, file, quantisation, told)
        path = merged.folder / "generation_config.json"
        settings = fsio.read_json(path, "export again") if path.is_file() else {}
    return Converted(file, merged.error, settings, notes)


def wants_bos(trained: TrainedStage) -> bool:
    """Return whether a runtime is to put a BOS before each text, so that it reads what was trained.

    Runtimes take a BOS that the chat template writes for their own, and add one to plain text. So a
    file adds none where the tokenizer does, and a run's chat template writes none.
    """
    tokenizer = trained.base.tokenizer
    if not _adds_bos(tokenizer):
        return False
    asked = trained.dataset.ask("a question") if trained.dataset is not None else "a question"
    if isinstance(asked, str):
        return True
    written = trained.encoder.render(asked, answer_next=True)
    return written.startswith(str(tokenizer.bos_token))


def _adds_bos(tokenizer: Any) -> bool:
    """Return whether a tokenizer puts a BOS before a text, as its converted file then says."""
    bos = tokenizer.bos_token_id
    return bos is not None and list(tokenizer("x")["input_ids"][:1]) == [bos]


def _add_no_bos(tools: Tools, file: Path, told: IO[bytes]) -> None:
    """Have a file say that no BOS is put before a text: in training there was none."""
    script = tools.folder / SET_METADATA
    if not script.is_file():
        raise EnvironmentFault(
            "E216",
            "the run's chat template writes no BOS, its tokenizer adds one to plain text, and"
            f" '{script}', which tells runtimes to add none, is missing",
            fix="name llama.cpp's own folder: --llama-cpp PATH/TO/llama.cpp",
        )
    words = [str(file), "tokenizer.ggml.add_bos_token", "", "--force"]  # "": false
    code = run_script(script, *words, modules=[tools.folder / "gguf-py"], out=told)
    if code:
        raise _failed("the program that sets a GGUF file's metadata", script, told, code)


def _quantise(tools: Tools, first: Path, file: Path, kind: str, told: IO[bytes]) -> tuple[str, ...]:
    """Write a file of a type, and return what llama.cpp could not do as it was asked."""
    told.seek(0)
    told.truncate()  # of the converter, which has done its work
    if tools.quantiser is not None:
        code = run_program(tools.quantiser, str(first), str(file), kind, out=told)
        by = tools.quantiser
    else:
        module = "llmft.exporting.quantise_child"
        code = run_python(module, str(first), str(file), kind, out=told)
        by = Path(sys.executable)
    if code or not file.is_file():
        raise _failed("the quantiser", by, told, code)
    return tuple(_other_types(kind, _text(told)))


def _other_types(kind: str, text: str) -> Iterator[str]:
    """Yield that tensors have other types than asked for, of what llama.cpp's quantiser printed."""
    counted, found = _OTHERS.search(text), set(_OTHER.findall(text))
    if counted is None or not found:
        return
    rows = ", ".join(sorted({columns for columns, _, _ in found}, key=int))
    block = max(int(size) for _, size, _ in found)
    types = ", ".join(sorted({other.upper() for _, _, other in found}))
    yield (
        f"{counted[1]} of the model's {counted[2]} tensors have rows of {rows} numbers, which are"
        f" no multiple of {block}: llama.cpp gave them the types {types}, so the file differs from"
        f" other models' {kind} in size and precision"
    )


def _text(told: IO[bytes]) -> str:
    told.seek(0)
    return told.read().decode("utf-8", "replace")


def _failed(what: str, program: Path, told: IO[bytes], code: int) -> EnvironmentFault:
    """Return the fault of a program that failed, with the last line that it printed."""
    text = _text(told)
    if missing := _MISSING.search(text):
        package = missing[1].partition(".")[0]
        return EnvironmentFault(
            "E206",
            f"{what} '{program}' needs the package '{package}'",
            fix=shlex.join([sys.executable, "-m", "pip", "install", package]),
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1][:_SHOWN] if lines else "it printed nothing"
    return EnvironmentFault(
        "E216",
        f"{what} '{program}' failed with code {code}: {last}",
        fix="see whether this llama.cpp knows the architecture; a newer one may",
    )
