"""What a run cannot do without: import the libraries, load the model, attach an adapter.

python bare_child.py FOLDER OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from clock import Clock

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(folder: Path, out: Path) -> None:
    """Get ready to train, and write what the clock says."""
    import accelerate
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    clock = Clock()
    accelerate.Accelerator()
    AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=TARGETS))
    clock.start()
    clock.stop(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
