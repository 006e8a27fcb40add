"""bitsandbytes' layers on the meta device: packed weights and their constants, without memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def quantize(model: Any, options: Mapping[str, Any]) -> None:
    """Replace the linear layers as transformers does when it loads, packed and with constants."""
    import bitsandbytes as bnb
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    # Its tables are kept for the process: made here first, they are real, and not meta tensors.
    with torch.device("cpu"):
        bnb.functional.quantize_blockwise(torch.zeros(256))
    config = BitsAndBytesConfig(**options)
    output = model.get_output_embeddings()
    kept = [name for name, module in model.named_modules() if module is output]
    with torch.device("meta"):
        replace_with_bnb_linear(model, modules_to_not_convert=kept, quantization_config=config)
        for module in model.modules():
            if isinstance(module, bnb.nn.Linear4bit):
                _pack_4bit(module, config)
            elif isinstance(module, bnb.nn.Linear8bitLt):
                _pack_8bit(module)
    model.is_quantized = True
    four = bool(options.get("load_in_4bit"))
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = four, not four


def _pack_4bit(module: Any, config: Any) -> None:
    import bitsandbytes as bnb

    packed, state = bnb.functional.quantize_4bit(
        module.weight.data,
        blocksize=64,
        compress_statistics=config.bnb_4bit_use_double_quant,
        quant_type=config.bnb_4bit_quant_type,
    )
    module.weight = bnb.nn.Params4bit(
        packed, requires_grad=False, quant_state=state, blocksize=64, bnb_quantized=True,
        compress_statistics=config.bnb_4bit_use_double_quant,
        quant_type=config.bnb_4bit_quant_type,
    )  # fmt: skip
    module.quant_state = state
    module.support_avx512bf16_for_cpu = False


def _pack_8bit(module: Any) -> None:
    import bitsandbytes as bnb

    rows = module.weight.shape[0]
    stored = torch.empty(module.weight.shape, dtype=torch.int8)
    module.weight = bnb.nn.Int8Params(stored, requires_grad=False, has_fp16_weights=False)
    module.weight.CB, module.weight.SCB = stored, torch.empty(rows, dtype=torch.float32)
