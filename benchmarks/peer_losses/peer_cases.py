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
    whether its own package comes from a checkout.
    """

    name: str
    package: str
    module: str
    function: str
    words: tuple[str, ...]
    install: tuple[str, ...] = ()
    is_checkout: bool = False


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
        return HERE / "cases" / self.peer / f"{self.name}.yaml"


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
    Case("trl", "kto", "kto", "unpaired", decided=("train_sampling_strategy",)),
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
    return Path(shutil.copy(case.config, folder / "config.yaml"))
