"""What comes from somebody else: a folder of files that programs pick up by name, and a run."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest

TRAIN = {
    "name": "sft", "adapter": {"method": "lora", "r": 2}, "alignment": {"method": "sft"},
    "train": {"max_steps": 1, "per_device_train_batch_size": 2},
}  # fmt: skip

MODULES = (
    "pluggy", "json", "shutil", "subprocess", "typing", "wandb", "torch", "transformers", "yaml",
    "ruamel", "typer", "rich", "numpy", "pickle", "tempfile", "accelerate", "peft", "datasets",
    "jinja2", "multiprocessing", "sitecustomize", "usercustomize", "conftest", "llmft_trackers",
    "llmft_datasets", "llmft", "setup", "runpy", "site", "tokenizers", "safetensors", "httpx",
    "rewards", "bitsandbytes", "vllm", "scipy", "sklearn", "pandas", "pyarrow", "kernels", "triton",
    "flash_attn", "tensorboard", "mlflow", "huggingface_hub", "hf_xet", "psutil",
)  # fmt: skip
PROGRAMS = (
    "git", "python", "python3", "nvidia-smi", "uname", "ldconfig", "gcc", "cc", "sh", "bash",
    "wandb-core", "llmft", "torchrun", "xdg-open", "rocm-smi", "lscpu", "hf", "pip",
)  # fmt: skip


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose files leave `RAN-<name>` in it when anything imports or starts them."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    plant(folder)
    return folder


def plant(folder: Path) -> None:
    """Put hostile files of every kind into a folder."""
    for name in MODULES:
        (folder / f"{name}.py").write_text(_python(folder, name))
    for name in PROGRAMS:
        path = folder / name
        path.write_text(f"#!/bin/sh\ntouch '{folder}/RAN-{name}'\nexit 1\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    git = folder / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "objects").mkdir()
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "refs/heads/main").write_text(f"{'a1' * 20}\n")
    command = f"touch '{folder}/RAN-git-config'"
    (git / "config").write_text(
        f'[core]\n\trepositoryformatversion = 0\n\tfsmonitor = "{command}; false"\n'
        f'\tsshCommand = "{command}"\n\tpager = "{command}"\n'
        f'[filter "x"]\n\tclean = "{command}"\n\tsmudge = "{command}"\n'
        f'[diff "x"]\n\ttextconv = "{command}"\n'
    )
    (folder / ".gitattributes").write_text("* filter=x diff=x\n")
    (git / "hooks").mkdir()
    for hook in ("post-index-change", "fsmonitor-watchman", "pre-commit"):
        path = git / "hooks" / hook
        path.write_text(f"#!/bin/sh\n{command}\n")
        path.chmod(0o755)
    (folder / ".env").write_text("PYTHONSTARTUP=sitecustomize.py\nHF_ENDPOINT=http://127.0.0.1:9\n")
    (folder / "pip.conf").write_text("[global]\nindex-url = http://127.0.0.1:9\n")
    (folder / ".netrc").write_text("default login a password b\n")
    (folder / "sitecustomize.pth").write_text(f"import os; os.mkdir('{folder}/RAN-pth')\n")
    (folder / "pyvenv.cfg").write_text("home = .\n")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p conftest\n")
    (folder / "wandb").mkdir()
    (folder / "wandb/settings").write_text("[default]\nbase_url = http://127.0.0.1:9\n")
    (folder / "wandb/__init__.py").write_text(_python(folder, "wandb-package"))


def ran(folder: Path) -> list[str]:
    """Return the names of what has run."""
    return sorted(path.name.removeprefix("RAN-") for path in folder.glob("RAN-*"))


def _python(folder: Path, name: str) -> str:
    return (
        f"open({str(folder / f'RAN-{name}')!r}, 'w').close()\nraise ImportError('not the real')\n"
    )


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A finished run that no test changes."""
    from llmft.engine.session import run_recipe
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry

    place = tmp_path_factory.mktemp("finished")
    rows = place / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n}", "completion": "x"}) + "\n" for n in "ab"))
    stage = {**TRAIN, "data": {"method": "jsonl", "path": str(rows)}}
    recipe = {"recipe": 1, "name": "tiny", "model": {"path": str(model_folder)}, "stages": [stage]}
    path = place / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return run_recipe(load_recipe(path, Registry.discover(), [f"output_dir={place}"])).folder


@pytest.fixture
def finished(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be changed."""
    return shutil.copytree(finished_run, tmp_path / finished_run.name)
