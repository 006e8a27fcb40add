"""Programs in place of llama.cpp's: they check how they are started, and write what they were told.

A file that this converter writes holds what it was told after GGUF's mark, as JSON.
"""

from __future__ import annotations

from pathlib import Path

CONVERTER = """
import json, os, sys
import beside_the_converter
assert sys.flags.safe_path, "no -P"
words = sys.argv[1:]
options = dict(zip(words[1::2], words[2::2]))
if os.environ.get("CONVERTER_FAILS"):
    print("noise")
    sys.exit("Model TinyForCausalLM is not supported")
if os.environ.get("CONVERTER_LACKS"):
    import a_package_that_is_not_there
assert os.path.isfile(os.path.join(words[0], "model.safetensors"))
facts = {"type": options["--outtype"].upper(), "adds_bos": True, "name": options["--model-name"]}
with open(options["--outfile"], "w") as file:
    file.write("GGUF" + json.dumps(facts))
"""
SET_METADATA = """
import json, sys
file, key, value, force = sys.argv[1:]
assert (key, value, force) == ("tokenizer.ggml.add_bos_token", "", "--force")
facts = json.loads(open(file).read()[4:])
open(file, "w").write("GGUF" + json.dumps(facts | {"adds_bos": False}))
"""
QUANTISER = """#!{python}
import json, sys
first, file, kind = sys.argv[1:]
facts = json.loads(open(first).read()[4:])
open(file, "w").write("GGUF" + json.dumps(facts | {{"type": kind, "from": facts["type"]}}))
if kind.endswith("_K_M"):  # as src/llama-quant.cpp says it
    print("warning: blk.0.attn_q.weight  - ncols     64 not divisible by 256"
          " (required for type    q4_K) -> falling back to    q5_0")
    print("warning: blk.0.ffn_down.weight  - ncols    96 not divisible by 256"
          " (required for type    q6_K) -> falling back to    q8_0")
    print("llama_model_quantize_impl: WARNING: 2 of 20 tensor(s) required fallback quantization")
"""


def llama_cpp_folder(folder: Path, *, quantiser: bool = True, scripts: bool = True) -> Path:
    """Return a folder that holds what a checkout of llama.cpp does."""
    import sys

    folder.mkdir()
    (folder / "beside_the_converter.py").write_text("")
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER)
    if scripts:
        place = folder / "gguf-py" / "gguf" / "scripts"
        place.mkdir(parents=True)
        (place / "gguf_set_metadata.py").write_text(SET_METADATA)
    if quantiser:
        (folder / "build" / "bin").mkdir(parents=True)
        program = folder / "build" / "bin" / "llama-quantize"
        program.write_text(QUANTISER.format(python=sys.executable))
        program.chmod(0o755)
    return folder
