"""The base model and its tokenizer: found, checked and loaded, with every option explicit."""

from __future__ import annotations

import copy
import datetime
import re
import shlex
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from llmft.api.errors import EnvironmentFault, LlmftError
from llmft.api.model_settings import ModelSource, is_template
from llmft.data.bounded_tokens import PANIC, check_tokenizer_file
from llmft.data.chat_format import ChatFormat, stop_id
from llmft.data.encoding import Encoder
from llmft.modeling.folder_checks import check_folder
from llmft.modeling.fused import check_fused, fuse
from llmft.modeling.levers import ATTRIBUTE, Fused, Levers, proven
from llmft.modeling.model_size import refuse_absurd_sizes
from llmft.modeling.new_tokens import NewToken, add_tokens, give_rows
from llmft.modeling.rope_scaling import stretch
from llmft.modeling.stored_dtype import KNOWN, said_dtype, stored_dtype
from llmft.modeling.stored_form import refuse_stored_form
from llmft.recipes.locating import about
from llmft.system import hub_commits
from llmft.system.quiet import before_upstream

EMBEDDED = "embedded:"
# As the hub has it: anything else is a folder that is not there.
HUB_ID = re.compile(r"(?!.*(?:--|\.\.|\.git$))\w([\w.-]*\w)?(/\w([\w.-]*\w)?)?", re.ASCII)


def locate_model(path: str) -> str:
    """Return the folder or the hub id that a recipe's path means."""
    if path.startswith(EMBEDDED):
        from llmft import assets

        try:
            return str(assets.locate(path.removeprefix(EMBEDDED)))
        except ValueError as error:
            raise EnvironmentFault("E201", str(error)) from error
    folder = Path(path).expanduser()
    if folder.is_dir():
        check_folder(folder)
        return str(folder)
    if folder.exists():
        raise EnvironmentFault("E201", f"'{path}' is a file, not a model folder")
    if not HUB_ID.fullmatch(path):
        raise EnvironmentFault(
            "E201", f"no folder '{path}'", fix="give a model's folder, or a hub id such as org/name"
        )
    return path


class BaseModel:
    """A recipe's base model: its folder is checked, and its config is read, once.

    key: the recipe's key that names it, which errors tell.
    """

    def __init__(self, source: ModelSource, key: str = "model") -> None:
        self.asked, self.key = source, key
        self._new_tokens: tuple[NewToken, ...] = ()

    @cached_property
    def source(self) -> ModelSource:
        """What was asked for, with a type in place of `dtype: auto`."""
        if self.asked.dtype != "auto":
            return self.asked
        found = said_dtype(self.config) or stored_dtype(self.path, self.config)
        if found not in KNOWN:
            raise EnvironmentFault(
                "E201",
                f"dtype is auto, and the files of '{self.asked.path}' say no type that a model is"
                f" loaded in ({found})",
                fix=f"write {self.key}.dtype: bfloat16 or float32",
            )
        return self.asked.model_copy(update={"dtype": found})

    @cached_property
    def path(self) -> str:
        """The folder or the hub id of the model. Raises as `locate_model` does."""
        return locate_model(self.asked.path)

    @cached_property
    def revision(self) -> str | None:
        """The commit that all files of a hub model are loaded from."""
        return _commit(self.path, self.asked.revision)

    @cached_property
    def config(self) -> Any:
        """The model's configuration, without its weights."""
        before_upstream()
        from transformers import AutoConfig

        with about(f"{self.key}.path"), loading(self.path, self.revision):
            config = AutoConfig.from_pretrained(
                self.path,
                revision=self.revision,
                trust_remote_code=False,
                local_files_only=hub_commits.unreachable(),
            )
        with about(f"{self.key}.path"):
            refuse_stored_form(self.path, config, self.key)
        if getattr(config, "is_decoder", None) is False:
            config.is_decoder = True  # an encoder such as BERT then looks only backwards
        if self.asked.rope_scaling is not None:
            with about("model.rope_scaling"):
                stretch(config, self.asked.rope_scaling)
        return config

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, with the recipe's chat template where it gives one."""
        before_upstream()
        from transformers import AutoTokenizer

        source = self.source
        with about(f"{self.key}.tokenizer" if source.tokenizer else f"{self.key}.path"):
            path = locate_model(source.tokenizer) if source.tokenizer else self.path
            revision = _commit(path, None) if source.tokenizer else self.revision
            check_tokenizer_file(Path(path) / "tokenizer.json")
            with loading(path, revision):
                tokenizer = AutoTokenizer.from_pretrained(
                    path,
                    revision=revision,
                    trust_remote_code=False,
                    local_files_only=hub_commits.unreachable(),
                )
        if source.chat_template is not None:
            with about("model.chat_template"):
                tokenizer.chat_template = _template(source.chat_template)
        self._new_tokens = add_tokens(tokenizer, source.add_tokens, source.add_special_tokens)
        return tokenizer

    @property
    def new_tokens(self) -> tuple[NewToken, ...]:
        """The tokens that the recipe adds to the tokenizer, in its order."""
        if not (self.asked.add_tokens or self.asked.add_special_tokens):
            return ()  # then no tokenizer has to be read
        _ = self.tokenizer
        return self._new_tokens

    @property
    def vocabulary(self) -> int | None:
        """How many ids the model has a row of the embedding for; None where it does not say."""
        words = getattr(self.config.get_text_config(), "vocab_size", None)
        return words and max(words, *(token.id + 1 for token in self.new_tokens), 0)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids at which the model's own files stop generation."""
        from transformers import GenerationConfig

        try:
            found: Any = GenerationConfig.from_pretrained(
                self.path, revision=self.revision, local_files_only=hub_commits.unreachable()
            )
        except (OSError, ValueError):
            found = self.config.get_text_config()
        declared = getattr(found, "eos_token_id", None)
        ids = declared if isinstance(declared, list | tuple) else (declared,)
        return tuple(sorted(int(i) for i in ids if i is not None))

    @property
    def answer_ends(self) -> list[int]:
        """The ids at which generation stops: the files', and those of `model.stop`."""
        named = {stop_id(self.tokenizer, word) for word in self.source.stop}
        return sorted({*self.stop_ids, *named})

    def encoder(self, max_length: int | None = None) -> Encoder:
        """Return what turns rows into token ids with this model's tokenizer and template."""
        return Encoder(self.tokenizer, max_length, self.chat_format)

    @property
    def chat_format(self) -> ChatFormat:
        """How the recipe has conversations written, and where the model's answers stop."""
        source = self.source
        return ChatFormat(
            dict(source.chat_template_kwargs),
            datetime.date.fromisoformat(source.chat_template_date),
            self.stop_ids,
            tuple(source.stop),
            source.lost_text,
            source.append_eos,
            source.missing_stop,
            source.learn_template,
            source.tokenize_apart,
        )

    @property
    def positions(self) -> int | None:
        """How many tokens a row may have; None where the model sets no limit."""
        return max_positions(self.config)

    def load(self, options: Mapping[str, Any], varlen: bool, *, on_cpu: bool = False) -> Any:
        """Return the frozen base model.

        options: BitsAndBytesConfig's names, from the recipe and the adapter.
        varlen: whether batches may be padding-free, where the architecture allows it.
        on_cpu: a quantised one too, which is on the GPU otherwise.
        Raises EnvironmentFault where files, or tensors in them, are missing or do not fit.
        """
        import torch
        from transformers import AutoModelForCausalLM

        from llmft.modeling import attention, flash_attention
        from llmft.modeling.one_step import take_over

        source, config = self.source, copy.deepcopy(self.config)  # a model changes its own
        stored = (
            0.5 if options.get("load_in_4bit") else 1.0 if options.get("load_in_8bit") else None
        )
        refuse_absurd_sizes(config, source, stored)
        check_fused(source.fused, config.get_text_config().model_type)
        levers = proven_levers(source, config, source.fused)  # refuses before weights are loaded
        with about(f"{self.key}.path"), loading(self.path, source.revision, config):
            model, report = AutoModelForCausalLM.from_pretrained(
                self.path,
                config=config,
                revision=self.revision,
                dtype=getattr(torch, source.dtype),
                attn_implementation=dense_attention(source, config),
                quantization_config=_quantization(options),
                device_map={"": "cpu"} if options and on_cpu else None,
                use_safetensors=True,
                local_files_only=hub_commits.unreachable(),
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                output_loading_info=True,
            )
        _refuse_wrong_tensors(self.path, report)
        _keep_packing(model)
        give_rows(model, self.new_tokens)
        if source.stop:
            model.generation_config.eos_token_id = self.answer_ends
        setattr(model, ATTRIBUTE, levers)
        fuse(model, source.fused)
        if source.fused == "none":
            take_over(model)
        setattr(model, attention.DENSE, dense_attention(source, config))
        name = attention.NAMES.get(source.attn_implementation)
        if source.attn_implementation in flash_attention.MODULES:
            # A run is refused before; its result can be scored on a machine without the package.
            lacks = flash_attention.missing(source.attn_implementation)
            name = attention.NAME if lacks else name
        if varlen and name and levers.padding_free:
            attention.register()
            model.set_attn_implementation(name)
        model.requires_grad_(False)
        return model

    def empty(self) -> Any:
        """Return the base on torch's meta device: modules, shapes and types, without weights."""
        import torch
        from transformers import AutoModelForCausalLM

        source, config = self.source, copy.deepcopy(self.config)
        refuse_absurd_sizes(config, source, 0.0)
        with torch.device("meta"), loading(self.path, source.revision):
            _refuse_other_kinds(source.path, config)
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=getattr(torch, source.dtype),
                attn_implementation=dense_attention(source, config),
                trust_remote_code=False,
            )
        give_rows(model, self.new_tokens)
        return model


def _template(text: str) -> str | dict[str, str]:
    """Return a chat template that is given as such, or as the model whose template it is."""
    if is_template(text):
        return text
    other = BaseModel(ModelSource(path=text)).tokenizer
    if not other.chat_template:
        raise EnvironmentFault(
            "E201",
            f"the tokenizer of '{text}' has no chat template",
            fix="name a model that has one, or give a Jinja template or the file that holds it",
        )
    found: str | dict[str, str] = other.chat_template
    return found


def proven_levers(source: ModelSource, config: Any, fused: Fused = "none") -> Levers:
    """Return which shortcuts of the forward pass are right for a model; tried once, then known.

    fused: the kernels that it has. Raises EnvironmentFault where they do not give plain
    transformers' numbers, where a token's logits depend on later tokens, where even padded rows
    of a batch change each other, and where nothing could be compared.
    """
    dense = dense_attention(source, config)
    levers = proven(config, dense, source.dtype, fused)
    if levers.looks_ahead:
        raise EnvironmentFault(
            "E201",
            f"'{source.path}' ({config.model_type}) sees the tokens that it is to predict:"
            f" {levers.looks_ahead}",
            fix="take a causal model, whose tokens see only those before them",
        )
    if fused != "none" and (wrong := levers.wrong_padded or levers.unproven):
        raise EnvironmentFault(
            "E201",
            f"{fused} does not give plain transformers' numbers on a small copy of"
            f" this '{config.model_type}': {wrong}",
            fix="write fused: none",
            path="model.fused",
        )
    if levers.wrong_padded:
        raise EnvironmentFault(
            "E201",
            f"'{source.path}' ({config.model_type}) does not give the loss of each row alone when"
            f" rows are padded in one batch: {levers.wrong_padded}",
            fix="take a model of another architecture",
        )
    if levers.unproven:
        raise EnvironmentFault(
            "E201",
            f"nothing shows that '{source.path}' ({config.model_type}) is trained right, as no"
            f" small copy of it could be tried: {levers.unproven}",
            fix="take a model of another architecture",
        )
    return levers


def dense_attention(source: ModelSource, config: Any) -> str:
    """Return the attention code for padded batches and for generation.

    It is torch's where a package of FlashAttention is named: that computes padding-free passes.
    """
    if source.attn_implementation in ("eager", "sdpa"):
        return str(source.attn_implementation)
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    fused = not known or MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return "sdpa" if fused and not capped else "eager"


def max_positions(config: Any) -> int | None:
    """Return how many tokens a row may have, or None where the model sets no limit."""
    value = getattr(config, "max_position_embeddings", None)
    return int(value) if value and value > 0 else None  # -1: none, as XLNet has it


def _commit(path: str, revision: str | None) -> str | None:
    """Return the commit that all files of a hub model are loaded from; a folder has none."""
    if Path(path).is_dir():
        return revision
    return hub_commits.of_model(path, revision) or revision


def _quantization(options: Mapping[str, Any]) -> Any:
    if not (options.get("load_in_4bit") or options.get("load_in_8bit")):
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**options)


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
                f"the weights in '{path}' do not match its config: {kind.split('_')[0]} {shown}",
                fix="check that config.json and the weights belong together",
            )


def refuse_not_finite(model: Any, source: ModelSource, key: str = "model") -> None:
    """Raise EnvironmentFault where a weight of a model is no number, or infinite.

    key: the recipe's key that names it.

    Every loss would be NaN from the first step on, and no setting of training would mend it.
    """
    import torch

    found = {}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.numel() and parameter.device.type != "meta":
            low, high = torch.aminmax(parameter.detach())  # NaN goes through both; nothing is kept
            found[name] = torch.isfinite(low) & torch.isfinite(high)
    if not found or bool(torch.stack(list(found.values())).all()):
        return
    bad = [name for name, fine in found.items() if not fine]
    shown = f"'{bad[0]}'" + (f" and {len(bad) - 1} more" if bad[1:] else "")
    too_large = source.dtype == "float16" and not model.get_parameter(bad[0]).isnan().any()
    raise EnvironmentFault(
        "E207",
        f"the model '{source.path}' has weights that are not finite: {shown}",
        fix=f"write {key}.dtype: bfloat16, which has room for them"
        if too_large
        else "fetch the model again, or convert it again; no training setting can fix it",
    )


class loading:
    """A context that turns transformers' many ways to say 'not found' into one.

    config: the model's, where it is known: it tells how large the weights are.
    """

    def __init__(self, path: str, revision: str | None = None, config: Any = None) -> None:
        self.path, self.revision, self.config = path, revision, config

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from huggingface_hub import constants
        from huggingface_hub.errors import StrictDataclassError

        if not _of_files(error):
            return
        of_config = isinstance(error, StrictDataclassError)
        local = Path(self.path).is_dir()
        lines = [line.strip() for line in str(error).strip().splitlines()] or [repr(error)]
        reason = " ".join(lines) if of_config else lines[0]
        offline = constants.is_offline_mode() or hub_commits.unreachable()
        unreached = offline or "connect" in reason
        if isinstance(error, OSError) and unreached and not local:
            told = (_size(self.config),) if self.config is not None else ()
            raise hub_commits.not_here(("model", self.path, self.revision), *told) from error
        fix = "check the folder's files" if local else f"try: hf download {shlex.quote(self.path)}"
        if isinstance(error, ImportError):
            fix = "install what is missing, or change the setting that needs it"
        raise EnvironmentFault("E201", f"cannot load '{self.path}': {reason}", fix=fix) from error


def _of_files(error: BaseException | None) -> bool:
    """Return whether an error comes of what is in the files, and not of memory or of a GPU.

    Libraries raise whatever they meet at files that are not what they should be; a panic of a Rust
    library is no Exception.
    """
    if (
        isinstance(error, MemoryError | LlmftError)
        or "memory" in str(error)
        or "CUDA" in str(error)
    ):
        return False
    return isinstance(error, Exception) or type(error).__name__ == PANIC


def _size(config: Any) -> str:
    """Return in words how much is to be fetched."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    count = sum(p.numel() for p in model.parameters())
    each = getattr(config, "dtype", None) or torch.float32
    return f"its weights take about {count * each.itemsize / 1e9:.2g} GB"
