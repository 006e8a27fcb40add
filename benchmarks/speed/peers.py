"""Other programs that fine-tune, each in an environment of its own, where it is installed here.

LLMFT_SPEED_PEERS names a folder with an environment for each, as `python -m venv` makes it:

    swift         torch==2.13.0 ms-swift==4.6.0
    llamafactory  torch==2.13.0 llamafactory==0.9.5   (then: pip uninstall torchvision torchaudio)
    torchtune     torch==2.13.0 torchtune==0.6.1 torchao==0.15.0
    litgpt        torch==2.13.0 litgpt==0.5.13
    axolotl       torch==2.13.0 axolotl==0.19.0       (with uv: pip finds no set of versions)

oumi 0.9 asks for torch below 2.13, and does not take part. This module imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

FOLDER = "LLMFT_SPEED_PEERS"
"""The environment variable with the folder of the peers' environments."""
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Peer:
    """A program beside llmft. folder: of its environment; package: its distribution.

    child: the program here that runs it; tasks: the names of those it does; absent: why it cannot
    be installed beside the others, if so.
    """

    name: str
    folder: str
    package: str
    tasks: tuple[str, ...] = ("sft", "sft-128k")
    absent: str = ""

    @property
    def child(self) -> Path:
        """Return the program here that runs it."""
        return HERE / f"{self.folder}_child.py"

    @property
    def python(self) -> Path | None:
        """Return the Python of its environment, if there is one."""
        root = os.environ.get(FOLDER)
        path = Path(root) / self.folder / "bin" / "python" if root else None
        return path if path and path.exists() else None

    @property
    def reason(self) -> str:
        """Return why it does not take part, or nothing."""
        if self.absent:
            return self.absent
        if FOLDER not in os.environ:
            return f"{FOLDER} names no folder of environments"
        if self.python is None:
            return f"'{os.environ[FOLDER]}' has no environment '{self.folder}'"
        return "" if self.version else f"its environment has no '{self.package}'"

    @property
    def version(self) -> str:
        """Return the version that is installed, or nothing."""
        if self.python is None:
            return ""
        places = self.python.parents[1].glob("lib/python*/site-packages")
        found = metadata.distributions(name=self.package, path=[str(place) for place in places])
        return next((each.version for each in found), "")


WITH_DPO = ("sft", "sft-128k", "dpo", "dpo-128k")
PEERS = (
    Peer("ms-swift", "swift", "ms_swift", WITH_DPO),
    Peer("LLaMA-Factory", "llamafactory", "llamafactory", WITH_DPO),
    Peer("torchtune", "torchtune", "torchtune"),
    Peer("litgpt", "litgpt", "litgpt"),
    Peer("Axolotl", "axolotl", "axolotl"),
    Peer("oumi", "oumi", "oumi", absent="oumi 0.9 asks for torch below 2.13"),
)


def present() -> Iterator[Peer]:
    """Give the peers that take part here."""
    return (peer for peer in PEERS if not peer.reason)


def left_out() -> list[str]:
    """Return a line for each peer that does not take part here, with the reason."""
    return [f"{peer.name} is left out: {peer.reason}" for peer in PEERS if peer.reason]


def versions() -> dict[str, str]:
    """Return the version of each peer that takes part."""
    return {peer.name: peer.version for peer in present()}
