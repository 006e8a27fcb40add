"""The base model and its tokenizer: found, checked and loaded, with every option explicit."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmft.errors import EnvironmentFault, LlmftError, TrustError
from llmft.model_size import refuse_absurd_sizes
from llmft.preparing.chat_format import ChatFormat, stop_id
from llmft.quiet import before_upstream
from llmft.settings import ModelSource, is_template
from llmft.sharing import commits

EMBEDDED = "embedded:"
# As the hub has it: anything else is a folder that is not there.
_HUB_ID = re.compile(r"(?!.*(?:--|\.\.|\.git$))\w([\w.-]*\w)?(/\w([\w.-]*\w)?)?", re.ASCII)
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def locate_model(path: str) -> str:
    """Return the folder or the hub id that a recipe's path means."""
    if path.startswith(EMBEDDED):
        from llmft import embedded

        try:
            return str(embedded.locate(path.removeprefix(EMBEDDED)))
        except ValueError as error:
            raise EnvironmentFault("E201", str(error)) from error
    folder = Path(path).expanduser()
    if folder.is_dir():
        check_folder(folder)
        return str(folder)
    if folder.exists():
        raise EnvironmentFault("E201", f"'{path}' is a file, not a model folder")
    if not _HUB_ID.fullmatch(path):
        raise EnvironmentFault(
            "E201", f"no folder '{path}'", fix="give a model's folder, or a hub id such as org/name"
        )
    return path


def check_folder(folder: Path) -> None:
    """Refuse a model folder that would run code or unpickle when it is loaded."""
    weights = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", *_PICKLES))
    if weights and not any(name.endswith(".safetensors") for name in weights):
        raise TrustError(
            "E602",
            f"'{folder}' holds pickled weights only ({weights[0]}), and a pickle can run any code",
            fix="convert them to safetensors on a machine you can lose",
        )
    for name in ("config.json", "tokenizer_config.json"):
        try:
            config = json.loads((folder / name).read_text("utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise EnvironmentFault("E201", f"'{folder / name}' is not readable JSON") from error
        if isinstance(config, dict) and config.get("auto_map"):
            raise TrustError(
                "E601",
                f"'{folder / name}' asks for code of its own ('auto_map')",
                fix="use an architecture that transformers knows",
            )


def load_tokenizer(source: ModelSource) -> Any:
    """Return the tokenizer, with the recipe's chat template where it gives one."""
    before_upstream()
    from transformers import AutoTokenizer

    path = locate_model(source.tokenizer or source.path)
    revision = _commit(path, None if source.tokenizer else source.revision)
    with _found(path, revision):
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    if source.chat_template is not None:
        tokenizer.chat_template = _template(source.chat_template)
    return tokenizer


def _template(text: str) -> str | dict[str, str]:
    """Return a chat template that is given as such, or as the model whose template it is."""
    if is_template(text):
        return text
    from transformers import AutoTokenizer

    path = locate_model(text)
    revision = _commit(path, None)
    with _found(path, revision):
        other = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    if not other.chat_template:
        raise EnvironmentFault(
            "E201",
            f"model.chat_template: the tokenizer of '{text}' has no chat template",
            fix="name a model that has one, or give a Jinja template or the file that holds it",
        )
    found: str | dict[str, str] = other.chat_template
    return found


def chat_format(source: ModelSource) -> ChatFormat:
    """Return how a recipe's model has conversations written, and where its answers stop."""
    return ChatFormat(
        dict(source.chat_template_kwargs),
        datetime.date.fromisoformat(source.chat_template_date),
        stop_ids(source),
        tuple(source.stop),
        source.lost_text,
        source.append_eos,
    )


def stop_ids(source: ModelSource) -> tuple[int, ...]:
    """Return the ids at which the model's own files stop generation."""
    from transformers import GenerationConfig

    config = load_config(source)
    path = locate_model(source.path)
    try:
        found: Any = GenerationConfig.from_pretrained(path, revision=_commit(path, source.revision))
    except (OSError, ValueError):
        found = config.get_text_config()
    declared = getattr(found, "eos_token_id", None)
    ids = declared if isinstance(declared, list | tuple) else (declared,)
    return tuple(sorted(int(i) for i in ids if i is not None))


def load_config(source: ModelSource) -> Any:
    """Return the model's configuration, without its weights."""
    before_upstream()
    from transformers import AutoConfig

    path = locate_model(source.path)
    revision = _commit(path, source.revision)
    with _found(path, revision):
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    if getattr(config, "is_decoder", None) is False:
        config.is_decoder = True  # an encoder such as BERT then looks only backwards
    return config


def load_base(source: ModelSource, options: Mapping[str, Any], varlen: bool) -> Any:
    """Return the frozen base model.

    options: BitsAndBytesConfig's names, from the recipe and the adapter.
    varlen: whether rows may be laid end to end, where the architecture allows it.
    Raises EnvironmentFault where files, or tensors in them, are missing or do not fit.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from llmft.training import attention

    config = load_config(source)
    stored = 0.5 if options.get("load_in_4bit") else 1.0 if options.get("load_in_8bit") else None
    refuse_absurd_sizes(config, source, stored)
    path = locate_model(source.path)
    with _found(path, source.revision, config):
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            revision=_commit(path, source.revision),
            dtype=getattr(torch, source.dtype),
            attn_implementation=dense_attention(source, config),
            quantization_config=_quantization(options),
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    _refuse_wrong_tensors(path, report)
    _keep_packing(model)
    if source.stop:
        _stop_at(model, source)
    if varlen and source.attn_implementation == "auto" and attention.supports(type(model), config):
        attention.register()
        model.set_attn_implementation(attention.NAME)
    model.requires_grad_(False)
    return model


def empty_base(source: ModelSource) -> Any:
    """Return the base model on torch's meta device: its modules and shapes, without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(source)
    refuse_absurd_sizes(config, source, 0.0)
    with torch.device("meta"), _found(locate_model(source.path), source.revision):
        _refuse_other_kinds(source.path, config)
        return AutoModelForCausalLM.from_config(
            config, attn_implementation=dense_attention(source, config), trust_remote_code=False
        )


def dense_attention(source: ModelSource, config: Any) -> str:
    """Return the attention code for padded batches and for generation."""
    if source.attn_implementation != "auto":
        return str(source.attn_implementation)
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    fused = not known or MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return "sdpa" if fused and not capped else "eager"


def max_positions(config: Any) -> int | None:
    """Return how many tokens a row may have, or None where the model sets no limit."""
    value = getattr(config, "max_position_embeddings", None)
    return int(value) if value else None


def _commit(path: str, revision: str | None) -> str | None:
    """Return the commit that all files of a hub model are loaded from; a folder has none."""
    if Path(path).is_dir():
        return revision
    return commits.of_model(path, revision) or revision


def _quantization(options: Mapping[str, Any]) -> Any:
    if not (options.get("load_in_4bit") or options.get("load_in_8bit")):
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**options)


def _stop_at(model: Any, source: ModelSource) -> None:
    """Have generation stop at the recipe's tokens too."""
    tokenizer = load_tokenizer(source)
    named = {stop_id(tokenizer, word) for word in source.stop}
    model.generation_config.eos_token_id = sorted({*stop_ids(source), *named})


def _keep_packing(model: Any) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew when first asked on some CPUs.

    That changes the base's weights and its answers, and fails for widths that 64 does not divide.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _refuse_other_kinds(path: str, config: Any) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if not any(type(c) in MODEL_FOR_CAUSAL_LM_MAPPING for c in (config, config.get_text_config())):
        raise EnvironmentFault(
            "E201",
            f"'{path}' is a model of the type '{config.model_type}', which has no causal decoder",
            fix="use a decoder such as Llama or GPT-2",
        )


def _refuse_wrong_tensors(path: str, report: Mapping[str, Any]) -> None:
    for kind in ("missing_keys", "mismatched_keys"):
        found = report.get(kind, ())  # a mismatch comes with both shapes
        names = sorted(name if isinstance(name, str) else name[0] for name in found)
        if names:
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
            raise EnvironmentFault(
                "E207",
                f"the weights in '{path}' do not fit the model: {kind.split('_')[0]} {shown}",
                fix="check that config.json and the weights belong together",
            )


class _found:
    """A context that turns transformers' many ways to say 'not found' into one.

    config: the model's, where it is known: it tells how large the weights are.
    """

    def __init__(self, path: str, revision: str | None, config: Any = None) -> None:
        self.path, self.revision, self.config = path, revision, config

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from huggingface_hub import constants
        from huggingface_hub.errors import StrictDataclassError
        from safetensors import SafetensorError

        known = isinstance(error, OSError | ValueError | KeyError | SafetensorError | ImportError)
        of_config = isinstance(error, StrictDataclassError)
        unlike = isinstance(error, RuntimeError) and "mismatch" in str(error)
        if not (known or of_config or unlike) or isinstance(error, LlmftError):
            return
        local = Path(self.path).is_dir()
        lines = [line.strip() for line in str(error).strip().splitlines()] or [repr(error)]
        reason = " ".join(lines) if of_config else lines[0]
        unreached = constants.is_offline_mode() or "connect" in reason
        if isinstance(error, OSError) and unreached and not local:
            told = (_size(self.config),) if self.config is not None else ()
            raise commits.not_here(("model", self.path, self.revision), *told) from error
        fix = "check the folder's files" if local else f"try: hf download {self.path}"
        if isinstance(error, ImportError):
            fix = "install what is missing, or change what asks for it"
        raise EnvironmentFault("E201", f"cannot load '{self.path}': {reason}", fix=fix) from error


def _size(config: Any) -> str:
    """Return in words how much is to be fetched."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    count = sum(p.numel() for p in model.parameters())
    each = getattr(config, "dtype", None) or torch.float32
    return f"its weights take about {count * each.itemsize / 1e9:.2g} GB"
