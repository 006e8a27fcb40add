"""What other tools' own trainers compute: the first losses of each configuration in cases/.

    python benchmarks/peer_losses/run.py trl                        # TRL is a dependency of llmft
    python benchmarks/peer_losses/run.py llamafactory --environments FOLDER [--only NAME]

Each peer is started as its own command starts it, on a tiny Llama and a few rows, in an environment
of its own below FOLDER, which is made where it is not there. --checkout names the sources of a
peer whose package is not on the index, or has not the scripts (those of TRL's ORPO and CPO).
`hook/` gives adapters and heads their first weights by name and writes the losses down.
records/PEER.json gets them.
A test holds what llmft computes, from the same file imported, against these records.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peer_cases import CASES, PEERS, Peer, laid

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "moving.md"
BEGIN, END = "<!-- peer losses: begin -->", "<!-- peer losses: end -->"


def main() -> int:
    """Record the losses of one peer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=PEERS, nargs="?", default="trl")
    parser.add_argument("--environments", type=Path, help="where environments are kept")
    parser.add_argument(
        "--checkout", type=Path, help="the peer's sources, where its package lacks scripts"
    )
    parser.add_argument("--only", help="the name of one case")
    parser.add_argument("--keep", type=Path, help="keep what the peer wrote and printed here")
    parser.add_argument("--page", action="store_true", help="only write the table of the page")
    asked = parser.parse_args()
    if asked.page:
        write_page()
        return 0
    peer = PEERS[asked.peer]
    if asked.checkout is not None:
        os.environ["PEER_CHECKOUT"] = str(asked.checkout.resolve())
    python = Path(sys.executable) if not peer.install else made(peer, asked)
    path = HERE / "records" / f"{asked.peer}.json"
    record: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"cases": {}}
    record = {"versions": versions(python, peer), "cases": record["cases"]}
    cases = [c for c in CASES if c.peer == asked.peer and asked.only in (None, c.name)]
    with tempfile.TemporaryDirectory() as scratch:
        folders = {case.name: (asked.keep or Path(scratch)).resolve() / case.name for case in cases}
        for case in cases:
            laid(case, folders[case.name])
        train(python, peer, list(folders.values()))
        for name, folder in folders.items():
            record["cases"][name] = found = recorded(folder)
            print(name, found["trainer"], *(f"{loss:.5g}" for loss in found["losses"]))
    names = [case.name for case in CASES if case.peer == asked.peer]
    record["cases"] = {name: record["cases"][name] for name in names if name in record["cases"]}
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    write_page()
    return 0


def write_page() -> None:
    """Write the table of all records between the marks of the page."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}{END}{rest.partition(END)[2]}", "utf-8")


def table() -> str:
    """Return what every peer's trainer computed, and what llmft does, as Markdown."""
    lines = []
    for name in PEERS:
        path = HERE / "records" / f"{name}.json"
        record = json.loads(path.read_text("utf-8"))
        shown = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
        lines += [f"{shown}:", "", "| configuration | its losses | llmft |", "|---|---|---|"]
        for case in (case for case in CASES if case.peer == name):
            losses = ", ".join(f"{loss:.4g}" for loss in record["cases"][case.name]["losses"])
            lines += [f"| `{name}/{case.name}.yaml` | {losses} | {case.differs or 'the same'} |"]
        lines += [""]
    return "\n".join(lines)


def made(peer: Peer, asked: argparse.Namespace) -> Path:
    """Return the Python of the peer's environment, which is made where it is not there."""
    folder: Path | None = asked.environments
    if folder is None:
        raise SystemExit(f"name a folder outside the project: --environments FOLDER ({peer.name})")
    python = folder.resolve() / peer.name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        own = Path(sysconfig.get_path("purelib", vars={"base": str(python.parents[1])}))
        (own / "zz_llmft.pth").write_text("\n".join(map(str, found_in_site())), "utf-8")
        command = [str(python), "-m", "pip", "install", "-q", "--no-deps", *peer.install]
        command += [str(asked.checkout)] if peer.is_checkout else []
        subprocess.run(command, check=True)
    return python


def found_in_site() -> list[str]:
    """Return the folders of packages of the running Python, torch's among them."""
    return [path for path in sys.path if path.endswith("site-packages")]


def versions(python: Path, peer: Peer) -> dict[str, str]:
    """Return the versions of what computes the numbers."""
    code = (
        "import json, sys; from importlib.metadata import version;"
        " print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    names = (peer.package, "torch", "transformers", "peft", "trl", "accelerate", "datasets")
    done = subprocess.run([str(python), "-c", code, *dict.fromkeys(names)], check=True,
                          capture_output=True, text=True)  # fmt: skip
    found: dict[str, str] = json.loads(done.stdout)
    return found


def train(python: Path, peer: Peer, folders: list[Path]) -> None:
    """Let the peer train in each folder."""
    paths = [HERE / "hook", HERE, *([HERE / "absent"] if peer.install else [])]
    environment = {
        **os.environ, "PEER": peer.name, "PEER_LOSSES": "told.json", "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", "AXOLOTL_DO_NOT_TRACK": "1",
        "PYTHONPATH": os.pathsep.join(map(str, paths)), "CUDA_VISIBLE_DEVICES": "",
        "HF_DATASETS_CACHE": str(folders[0].parent / "cache"), "TOKENIZERS_PARALLELISM": "false",
        "DISABLE_VERSION_CHECK": "1",
    }  # fmt: skip
    command = [str(python), str(HERE / "forked.py"), peer.module, peer.function,
               json.dumps(peer.words), *map(str, folders)]  # fmt: skip
    subprocess.run(command, env=environment, check=True)


def recorded(folder: Path) -> dict[str, Any]:
    """Return the losses of one configuration and what the peer trained on."""
    if not (folder / "told.json").exists():
        said = (folder / "out.txt").read_text("utf-8", errors="replace")[-3000:]
        raise SystemExit(f"{folder.name}: the peer did not train\n{said}")
    found: dict[str, Any] = json.loads((folder / "told.json").read_text("utf-8"))
    return {
        "trainer": found["trainer"],
        "losses": [float(f"{loss:.7g}") for loss in found["losses"][:5]],
        "tokens": counted(found["batches"], "attention_mask", lambda one: one != 0),
        "learnt": counted(found["batches"], "labels", lambda one: one != -100),
    }


def counted(batches: list[dict[str, Any]], name: str, meant: Callable[[int], bool]) -> int | None:
    """Return how many numbers of the first step are meant, of the batches' tensor of this name."""
    rows = [row for held in batches for row in held.get(name, ())]
    return sum(meant(one) for row in rows for one in row) if rows else None


if __name__ == "__main__":
    sys.exit(main())
