"""The peers, how each is installed and started, and the configurations that are tried."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from peer_start import write_model

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Peer:
    """A tool.

    module, function: what its command calls, once it is known that it trains. words: the command
    line then. install: what pip is given; nothing where llmft's environment has it. is_checkout:
    whether its own package comes from a checkout. form: how its configurations' names end.
    """

    name: str
    package: str
    module: str
    function: str
    words: tuple[str, ...]
    install: tuple[str, ...] = ()
    is_checkout: bool = False
    form: str = "yaml"


@dataclass(frozen=True)
class Case:
    """A configuration in cases/PEER/NAME.yaml.

    trainer, rows: what `llmft import` is told besides. decided: the keys that need a decision.
    differs: why llmft's losses are others, as the report of the import says. factor: what the
    peer's losses are of llmft's, for that reason; None where they are others altogether.
    """

    peer: str
    name: str
    trainer: str = ""
    rows: str = ""
    decided: tuple[str, ...] = ()
    differs: str = ""
    factor: float | None = 1.0
    beside: tuple[str, ...] = ()

    @property
    def config(self) -> Path:
        """The configuration's file."""
        return HERE / "cases" / self.peer / f"{self.name}.{PEERS[self.peer].form}"


PEERS = {
    "trl": Peer("trl", "trl", "trl_script", "start", ("trl", "--config", "config.yaml")),
    "llamafactory": Peer(
        "llamafactory", "llamafactory", "llamafactory.train.tuner", "run_exp",
        ("llamafactory-cli", "config.yaml"),
        # Over llmft's own environment, for torch and what has no pin; the rest is as it pins it.
        # What it pins besides (torchaudio, torchvision, gradio, ...) acts on no text.
        (
            "transformers==5.6.0", "huggingface_hub==1.17.0", "tokenizers==0.22.2",
            "peft==0.18.1", "trl==0.24.0", "accelerate==1.11.0", "datasets==4.0.0", "dill==0.3.8",
            "multiprocess==0.70.16", "fsspec==2025.3.0", "omegaconf",
            "antlr4-python3-runtime==4.9.3", "fire", "termcolor", "tyro<0.9.0", "docstring_parser",
            "shtab", "einops", "matplotlib", "pillow",
            "kiwisolver", "cycler", "pyparsing", "contourpy", "fonttools", "scipy",
            "llamafactory==0.9.5",
        ),
    ),
    "alignment-handbook": Peer(
        "alignment-handbook", "alignment-handbook", "handbook_script", "start",
        ("sft", "--config", "config.yaml"),
        # As recipes/ and setup.py name them; the rest is llmft's environment's.
        (
            "trl==0.19.1", "transformers==4.53.3", "huggingface_hub==0.34.4", "tokenizers==0.21.4",
            "peft==0.16.0", "accelerate==1.9.0", "datasets==4.0.0", "dill==0.3.8",
            "multiprocess==0.70.16", "fsspec==2025.3.0", "evaluate==0.4.0",
        ),
        is_checkout=True,
    ),
    "axolotl": Peer(
        "axolotl", "axolotl", "axolotl_script", "start", ("axolotl", "config.yaml"),
        (
            "axolotl==0.19.0", "transformers==5.16.1", "peft==0.20.0", "trl==1.9.0",
            "datasets==4.8.4", "accelerate==1.13.0", "huggingface_hub==1.17.0",
            "tokenizers==0.23.1", "addict", "fire", "einops", "art", "python-dotenv",
            "immutabledict", "schedulefree", "posthog==6.7.11", "axolotl-contribs-lgpl==0.0.7",
            "axolotl-contribs-mit==0.0.6", "fastcore", "colorama", "termcolor", "typer==0.25.1",
            "evaluate==0.4.1", "langdetect", "optimum==1.16.2", "liger-kernel==0.8.1",
            "fla-core==0.5.2", "scipy", "backoff", "numba", "llvmlite", "triton", "pillow",
            "kernels",
        ),
    ),
    "oumi": Peer(
        "oumi", "oumi", "oumi_script", "start", ("oumi",),
        (
            "oumi==0.9", "transformers==5.16.1", "trl==1.6.0", "peft==0.19.1", "datasets==4.8.4",
            "accelerate==1.13.0", "huggingface_hub==1.17.0", "tokenizers==0.23.1",
            "omegaconf==2.4.0.dev4", "antlr4-python3-runtime", "jsonlines", "aiofiles", "backoff",
            "posthog", "typer==0.24.0", "responses", "tiktoken", "hdrhistogram", "pexpect",
            "ptyprocess", "jsonschema", "referencing", "rpds-py", "jsonschema-specifications",
            "attrs", "pillow", "mlflow", "cachetools", "sqlparse", "fastapi", "starlette",
            "importlib-metadata", "lazy-importer", "databricks", "tensorboard", "sqlalchemy",
        ),
    ),
    "ms-swift": Peer(
        "ms-swift", "ms-swift", "swift_script", "start", ("swift",),
        (
            "ms-swift==4.6.0", "transformers==5.16.1", "peft==0.20.0", "trl==0.29.0",
            "datasets==4.8.4", "modelscope", "accelerate==1.13.0", "addict", "json-repair",
            "dacite", "attrdict", "binpacking", "oss2", "rouge", "simplejson", "sortedcontainers",
            "transformers-stream-generator", "cpm-kernels", "einops", "tiktoken", "nltk",
            "matplotlib", "zstandard", "openai", "importlib-metadata", "scipy", "pillow",
            "huggingface_hub==1.17.0", "tokenizers==0.23.1", "modelscope-hub", "cryptography",
            "cffi", "pycparser", "aiohttp", "aiosignal", "aiohappyeyeballs", "frozenlist",
            "multidict", "propcache", "yarl", "attrs", "kernels",
        ),
        form="sh",
    ),
}  # fmt: skip
INFO = ("dataset_info.json",)
CASES = (
    Case("trl", "sft_chat", "sft", "chat"),
    Case("trl", "sft_answers_of_chat", "sft", "chat"),
    Case("trl", "sft_completions", "sft", "prompt-completion"),
    Case("trl", "sft_dft", "sft", "prompt-completion"),
    Case("trl", "sft_wrapped", "sft", "text"),
    Case("trl", "dpo", "dpo", "preference"),
    Case("trl", "dpo_ipo_chat", "dpo", "preference"),
    Case("trl", "kto", "kto", "unpaired"),
    Case("trl", "reward", "reward", "preference"),
    # The model's tokenizer has no beginning-of-text, which TRL would put there.
    Case("trl", "orpo_chat", "orpo", "preference", decided=("",)),
    Case("trl", "cpo_chat", "cpo", "preference", decided=("",)),
    Case(
        "alignment-handbook", "sft_chat", "sft", "chat", factor=773 / 781,
        differs="transformers 4.53 divides by the tokens of a row; the first is never predicted",
    ),
    Case(
        "alignment-handbook", "sft_zephyr", "sft", "chat", factor=854 / 862,
        differs="transformers 4.53 divides by the tokens of a row; the first is never predicted",
    ),
    *(
        Case("alignment-handbook", f"dpo_{name}", "dpo", "preference")
        for name in ("full", "short_prompts", "ipo", "apo_zero")
    ),
    Case("alignment-handbook", "orpo", "orpo", "preference", decided=("",)),
    *(
        Case("axolotl", f"sft_{name}")
        for name in ("chat", "full", "every_turn", "alpaca", "dora", "completion")
    ),
    *(
        Case("oumi", f"sft_{name}")
        for name in ("lora", "full", "clipped", "unclipped", "every_layer", "excluded")
    ),
    *(
        Case(
            "ms-swift", f"sft_{name}", "", "prompt-completion" if name == "queries" else "",
            decided=("model_type",),
        )
        for name in ("chat", "full", "dft", "dora", "queries", "nothinking")
    ),
    *(
        Case("llamafactory", name, beside=INFO)
        for name in ("sft_chat", "sft_last_turn", "sft_full", "dpo", "orpo", "kto")
    ),
    Case(
        "llamafactory", "pt", beside=INFO, factor=226 / 227,
        differs="transformers 5.6 divides by the tokens of a row; the first is never predicted",
    ),
    Case(
        "llamafactory", "rm", beside=INFO, decided=("stage",), factor=None,
        differs="its head has a bias, and dropout in training",
    ),
)  # fmt: skip


def laid(case: Case, folder: Path) -> Path:
    """Write the model, the rows and the configuration, and return the configuration's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "model")
    shutil.copytree(HERE / "rows", folder / "rows", dirs_exist_ok=True)
    (folder / "trainer.txt").write_text(case.trainer, "utf-8")
    for beside in case.beside:
        shutil.copy(HERE / "cases" / case.peer / beside, folder / beside)
    return Path(shutil.copy(case.config, folder / f"config{case.config.suffix}"))
