"""Count what each lever saves on a GPU, before and after, in one program: no GPU is needed.

    python benchmarks/gpu/levers.py [--page] [--card H100]

Takes two steps of llmft's own loop for Llama 3 8B's shape on simulated cuda tensors without numbers
(tests/rehearsal), and counts the second: FLOPs of the matrix products, bytes that kernels read and
write, kernels, and where the host waits. Two and three layers are computed; the other layers are as
the third. A kernel then takes what its products take at the rate of a large one, or what its bytes
take; the host takes a time for each kernel. Estimated by that, not measured: where a record of a
GPU has the same step, it stands beside it. --page: fills the table in docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from plan_memory import fill
from shape import SHAPE, attach

from llmft.modeling import attention, head_pieces
from llmft.modeling.recompute import checkpoint_layers
from llmft.planning.memory_tracker import flops_of
from llmft.planning.roofline import HOST_SECONDS, STREAMED, Card, named_card
from tests.rehearsal.pretend_gpu import CUDA, REASON, TRIED, PretendGpu, is_gpu, known_to_accelerate

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "performance.md"
LARGE_PRODUCT = 0.79
"""Of the peak, what a product of 8192 x 8192 x 8192 reached on an H100 (777 of 989 TFLOP/s)."""
PASS = (2048,) * 4
SHORT = (256,) * 32
MIXED = (3200, 1800, 1200, 800, 500, 300, 200, 100, 60, 32)

Change = Callable[[], Any]
"""Makes a context in which something is as it was before."""


@dataclass(frozen=True)
class Counts:
    """What one step, or some of them, takes. ms: of the device."""

    flops: float = 0.0
    bytes: float = 0.0
    kernels: float = 0.0
    waits: float = 0.0
    ms: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self.told, other.told, strict=True)))

    def times(self, factor: float) -> Counts:
        """Return so many times this."""
        return Counts(*(a * factor for a in self.told))

    @property
    def told(self) -> tuple[float, ...]:
        """All numbers, in their order."""
        return self.flops, self.bytes, self.kernels, self.waits, self.ms


@dataclass(frozen=True)
class Step:
    """A step: the rows of each pass, how the model is trained, and what is changed in the code."""

    passes: tuple[tuple[int, ...], ...] = (PASS,)
    method: str = "lora"
    bits: int = 16
    checkpointed: bool = True
    dropout: float = 0.0
    changes: tuple[Change, ...] = ()
    times: int = 1
    record: str = ""
    budget: int | None = field(default=None)


_NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "alias", "lift_fresh",
              "_unsafe_view", "new_empty_strided", "set_data"}  # fmt: skip
_READS_SOME = {"embedding", "index", "index_select", "gather"}


class Counter:
    """Adds up kernels of the simulated device."""

    def __init__(self, card: Card) -> None:
        self.card, self.sum = card, Counts()

    def __call__(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = func._schema.name.rpartition("::")[2]
        if func.is_view or name in _NO_KERNEL:
            return
        read = [] if name in _READS_SOME else _tensors((args, kwargs))
        made = _tensors(out)
        moved = sum(t.numel() * t.element_size() for t in [*read, *made])
        flops = flops_of(func, *_all_heads(name, args), kwargs, out)
        seconds = max(
            flops / (LARGE_PRODUCT * self.card.flops),
            moved / (STREAMED[-1] * self.card.bandwidth),
        )
        self.sum += Counts(flops, moved, 1, 0, 1e3 * seconds)


def _tensors(tree: Any) -> list[torch.Tensor]:
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(tree) if is_gpu(leaf)]


def _all_heads(name: str, args: Any) -> tuple[Any]:
    """Return arguments in which keys have as many heads as queries, as torch's formula wants it."""
    if "attention" not in name:
        return (args,)
    query = args[1] if "backward" in name else args[0]
    wide = [
        a.new_empty(*query.shape[:2], *a.shape[2:]) if is_gpu(a) and a.dim() == 4 else a
        for a in args
    ]
    return (wide,)


def _to_device(gpu: PretendGpu, model: Any) -> None:
    """Put a model on the device, and packed weights with their constants, which torch cannot."""

    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return gpu.on_device(value.detach().as_subclass(torch.Tensor))
        if type(value).__name__ == "QuantState":
            for name, held in vars(value).items():
                setattr(value, name, moved(held))
        return value

    layers = [one for one in model.modules() if hasattr(getattr(one, "weight", None), "blocksize")]
    weights = [layer._parameters.pop("weight") for layer in layers]
    model.to(CUDA)
    for layer, weight in zip(layers, weights, strict=True):
        packed = torch.nn.Parameter(moved(weight), requires_grad=False)
        vars(packed).update(vars(weight))
        packed.quant_state = layer.quant_state = moved(weight.quant_state)
        layer.weight = packed


def base(gpu: PretendGpu, bits: int, layers: int) -> Any:
    """Return the frozen base of so many layers on the device that is not there."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmft.planning.quantized import quantize

    config = LlamaConfig(
        **SHAPE | {"num_hidden_layers": layers}, max_position_embeddings=8192,
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    rotary = type(model.model.rotary_emb)(config)
    model = model.to(torch.bfloat16)
    if bits == 4:
        quantize(model, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
                         "bnb_4bit_compute_dtype": torch.bfloat16,
                         "bnb_4bit_use_double_quant": True})  # fmt: skip
    model.model.rotary_emb = rotary
    _to_device(gpu, model)
    attention.register()
    model.set_attn_implementation(attention.NAME)
    return model.requires_grad_(False)


def _counted(step: Step, layers: int, card: Card) -> Counts:
    """Return what the second step takes with so many layers."""
    from llmft_alignments.sft import CompletionLoss

    from llmft.api import Encoded
    from llmft.api.train_settings import TrainSettings
    from llmft.training import loop

    lengths = [length for one in step.passes for length in one]
    ids = [tuple(range(1, length + 1)) for length in lengths]  # a step takes them all
    items = [Encoded(row, row, f"row {n}") for n, row in enumerate(ids)]
    gpu, counter = PretendGpu(numbers=False), Counter(card)
    seen: list[Counts] = []

    def on_step(*_: Any) -> None:
        seen.append(counter.sum + Counts(waits=gpu.waits.total()))

    with ExitStack() as stack:
        for one in (gpu, known_to_accelerate(), *(change() for change in step.changes)):
            stack.enter_context(one)
        model = base(gpu, step.bits, layers)
        if step.checkpointed:
            checkpoint_layers(model)
        settings = {"lora_dropout": step.dropout} if step.dropout else {}
        model = attach(model, step.method, **settings)
        gpu.on_kernel = counter
        each = max(len(one) for one in step.passes)
        train = TrainSettings(
            max_steps=2, bf16=True, optim="adamw_torch", per_device_train_batch_size=each,
            gradient_accumulation_steps=len(step.passes),
            gradient_checkpointing=step.checkpointed,
        )  # fmt: skip
        loop.train(model, items, CompletionLoss(), train, seed=0, on_step=on_step)
    return seen[1] + seen[0].times(-1)


@cache
def counted(step: Step, card: Card, layers: int = 32) -> Counts:
    """Return what a step takes with all layers."""
    two, three = (_counted(step, number, card) for number in (2, 3))
    return (two + (three + two.times(-1)).times(layers - 2)).times(step.times)


@cache
def host_ms(card: Card) -> float:
    """Return what the host takes to start a kernel, where a layer's take what a plan says."""
    two, three = (_counted(Step(), number, card) for number in (2, 3))
    return 1e3 * HOST_SECONDS[1] / (three.kernels - two.kernels)


def patched(target: Any, name: str, new: Any) -> Change:
    """Return a change that puts something in the place of another thing."""
    return lambda: mock.patch.object(target, name, new)


def _by_peft() -> Any:
    """Let PEFT's own forward pass and dropout be taken."""
    from llmft_adapters.lora import layer

    return mock.patch.object(layer, "take_over", return_value=None)


def _pieces_of_130() -> Any:
    return mock.patch.object(head_pieces, "ROWS_ON_A_GPU", 130)


def _unfused_adamw() -> Any:
    """Let AdamW take torch's steps for each tensor, as before."""
    from llmft_optimizers import of_torch

    def make(self: Any, groups: Any, train: Any) -> Any:
        from llmft_optimizers.making import copied, of_adam, usual

        return torch.optim.AdamW(copied(groups), foreach=False, **of_adam(train), **usual(train))

    return mock.patch.object(of_torch.AdamwTorch, "make", make)


def _padded() -> Any:
    """Let rows of several lengths be padded for attention."""
    return mock.patch.object(attention, "_PADDING_BUDGET", 1e9)


def _each_alone() -> Any:
    """Let each row's attention be a call: the work of one call that takes rows of all lengths."""
    return mock.patch.object(attention, "_PADDING_BUDGET", 0.0)


@contextmanager
def _one_kernel() -> Iterator[None]:
    """Let norms, rotations and SwiGLU be a kernel each, forward and backward, as Liger's are."""
    from transformers.models.llama import modeling_llama as llama

    def norm(self: Any, x: Any) -> Any:
        return _OneKernel.apply(1, x, self.weight)

    def gated(self: Any, x: Any) -> Any:
        return self.down_proj(_OneKernel.apply(1, self.gate_proj(x), self.up_proj(x)))

    def rotated(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
        return _OneKernel.apply(2, q, k, cos, sin)

    with (
        mock.patch.object(llama.LlamaRMSNorm, "forward", norm),
        mock.patch.object(llama.LlamaMLP, "forward", gated),
        mock.patch.object(llama, "apply_rotary_pos_emb", rotated),
    ):
        yield


class _OneKernel(torch.autograd.Function):
    """Makes tensors like the first `made` given ones; gradients likewise, of all that want one."""

    @staticmethod
    def forward(ctx: Any, made: int, *given: Any) -> Any:
        ctx.save_for_backward(*given)
        out = torch.ops.levers.kernel(list(given), list(given[:made]))
        return out[0] if made == 1 else tuple(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        given = ctx.saved_tensors
        wanted = [n for n, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        out = torch.ops.levers.kernel([*gradients, *given], [given[n] for n in wanted])
        found = dict(zip(wanted, out, strict=True))
        return (None, *(found.get(n) for n in range(len(given))))


_library = torch.library.Library("levers", "DEF")
_library.define("kernel(Tensor[] given, Tensor[] like) -> Tensor[]")


@torch.library.register_fake("levers::kernel", lib=_library)
def _(given: Any, like: Any) -> Any:
    return [torch.empty_like(one) for one in like]


def decoded(rows: int, at_once: int, card: Card, layers: int = 32) -> Counts:
    """Return what one token of so many answers takes, after 512 tokens, so many at a time."""
    two, three = (_decoded(at_once, number, card) for number in (2, 3))
    whole = two + (three + two.times(-1)).times(layers - 2)
    return whole.times(rows / at_once)


def _decoded(rows: int, layers: int, card: Card) -> Counts:
    from transformers import DynamicCache

    gpu, counter = PretendGpu(numbers=False), Counter(card)
    with gpu, torch.no_grad():
        model = base(gpu, 16, layers)
        model.set_attn_implementation("sdpa")
        model = attach(model, "lora").eval()
        cache = DynamicCache()
        kept = torch.zeros(rows, 8, 511, 128, dtype=torch.bfloat16, device=CUDA)
        for layer in range(layers):
            cache.update(kept, kept, layer)
        ids = torch.zeros(rows, 1, dtype=torch.long, device=CUDA)
        places = torch.full((rows, 1), 511, device=CUDA)
        gpu.on_kernel = counter
        with torch.autocast("cuda", torch.bfloat16):
            model(input_ids=ids, past_key_values=cache, position_ids=places, use_cache=True)
    return counter.sum


ONE_BY_ONE = Step(passes=((256,),) * 2, times=16)
LEVERS: tuple[tuple[str, Step, Step], ...] = (
    ("LoRA by a step of our own; before: PEFT's", Step(changes=(_by_peft,)),
     Step(record="lora 4x2048 checkpointed")),
    ("dropout 0.1 inside it; before: PEFT's", Step(dropout=0.1, changes=(_by_peft,)),
     Step(dropout=0.1, record="lora 4x2048 dropout 0.1 checkpointed")),
    ("QLoRA: the weight unpacked once a product; before: PEFT's",
     Step(bits=4, method="qlora", changes=(_by_peft,)), Step(bits=4, method="qlora")),
    ("32 rows of 256 tokens in one pass; before: 1 row x 2 a step", ONE_BY_ONE,
     Step(passes=(SHORT,))),
    ("attention of 10 rows of 32 to 3,200, each by its length; before: padded",
     Step(passes=(MIXED,), changes=(_padded,)), Step(passes=(MIXED,), changes=(_each_alone,))),
    ("head in pieces of 4,096 rows; before: 130", Step(changes=(_pieces_of_130,)), Step()),
    ("norms, rotations, SwiGLU a kernel each (`fused: liger`); before: torch's steps", Step(),
     Step(changes=(_one_kernel,), record="lora, liger layers, 4x2048 checkpointed")),
    ("no gradient checkpointing; before: all layers", Step(),
     Step(checkpointed=False, record="lora 4x2048")),
    ("both of the last two; before: neither", Step(),
     Step(checkpointed=False, changes=(_one_kernel,), record="lora, liger layers, 4x2048")),
    ("fused AdamW; before: steps for each tensor", Step(changes=(_unfused_adamw,)), Step()),
)  # fmt: skip
ROLLOUTS = "a token of 64 answers, all at once; before: one at a time"


def recorded(name: str) -> str:
    """Return the milliseconds that a step of this name took on an H100; '' where none did."""
    lines = (HERE / "h100.jsonl").read_text().splitlines()
    told = [one for one in map(json.loads, lines)
            if one.get("speed") == name and one.get("version") != "before"]  # fmt: skip
    return f"{told[-1]['ms']:,.0f}" if told else ""


HEAD = ["| lever | | TFLOP | GB moved | kernels | waits | device, ms | host, ms | estimated, ms |"
        " measured, ms |", "|" + "---|" * 10]  # fmt: skip


def rows_of(
    name: str, before: Counts, after: Counts, host: float, record: str = ""
) -> Iterator[str]:
    """Yield a lever's two lines of the table."""
    for when, counts, told in (("before", before, ""), ("after", after, record)):
        started = counts.kernels * host
        yield (
            f"| {name if when == 'before' else ''} | {when} | {counts.flops / 1e12:.1f} |"
            f" {counts.bytes / 1e9:,.0f} | {counts.kernels:,.0f} | {counts.waits:.0f} |"
            f" {counts.ms:,.0f} | {started:,.0f} | {max(counts.ms, started):,.0f} | {told} |"
        )


def table(card: Card, levers: Any = LEVERS, layers: int = 32) -> Iterator[str]:
    """Yield the lines of the table."""
    yield from HEAD
    host = host_ms(card)
    for name, before, after in levers:
        counts = (counted(step, card, layers) for step in (before, after))
        yield from rows_of(name, *counts, host, recorded(after.record))
    drawn = (decoded(64, at_once, card, layers) for at_once in (1, 64))
    yield from rows_of(ROLLOUTS, *drawn, host)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--page", action="store_true", help="fill the table of docs/performance.md")
    parser.add_argument("--card", default="H100", help="a GPU that llmft plan knows by name")
    asked = parser.parse_args()
    if not TRIED:
        raise SystemExit(REASON)
    card = named_card(asked.card)
    if card is None:
        raise SystemExit(f"'{asked.card}' names no card")
    lines = []
    for line in table(card):
        lines.append(line)
        print(line, flush=True)
    if asked.page:
        fill("gpu levers", "benchmarks/gpu/levers.py", lines, PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
