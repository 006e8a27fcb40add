"""Quantises a GGUF file by the llama_cpp package: `python -m llmft.exporting.quantise_child`.

A process of its own, as llama.cpp ends the process at what it does not expect.
"""

from __future__ import annotations

import sys


def main(first: str, file: str, kind: str) -> int:
    """Write `file` from `first`, of a type by llama.cpp's name; return 0 where that went well."""
    import ctypes

    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    code = llama_cpp.llama_model_quantize(first.encode(), file.encode(), ctypes.byref(params))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
