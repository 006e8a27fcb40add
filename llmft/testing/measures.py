"""What the adapter contract measures: logits, losses, gradients, and what a save wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmft.api import Encoded

SMALL = 64
"""A tensor of fewer numbers may equal one of the base's by chance (zeros, ones)."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: for tiny tensors ten times as fast as two that wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seed(value: int = 7) -> None:
    """Set torch's global random state."""
    import torch

    torch.manual_seed(value)


def stir_random_state() -> None:
    """Leave torch's random state where a fresh initialisation cannot match the first one."""
    seed(90210)


def tokens() -> Any:
    """Return the batch that everything is measured on: B=3, T=12, ids below 256."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 12), generator=generator)


def logits(model: Any) -> Any:
    """Return the model's logits on the batch (B, T, V), in eval mode and without gradients."""
    import torch

    ids_BT = tokens().to(next(model.parameters()).device)
    was = model.training
    model.eval()
    with torch.no_grad():
        out = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).logits
    model.train(was)
    # Virtual tokens, where an adapter puts any, stand before the text.
    return out[:, -ids_BT.shape[1] :].clone()


def loss(model: Any) -> float:
    """Return the model's mean next-token loss on the batch, in nats."""
    import torch

    was = model.training
    model.eval()
    with torch.no_grad():
        value = float(_loss(model))
    model.train(was)
    return value


def train(model: Any, *, steps: int, learning_rate: float) -> None:
    """Take a few AdamW steps on the batch, over what requires grad; leaves the model in eval."""
    import torch

    seed()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0.01
    )
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        _loss(model).backward()
        optimizer.step()
    optimizer.zero_grad()
    model.eval()


def nudge(model: Any) -> None:
    """Move what requires grad a little: factors that start at zero hide their neighbours."""
    import torch

    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, parameter in sorted(learnt(model).items()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((0.05 * noise).to(parameter.device, parameter.dtype))


def gradients(model: Any) -> dict[str, Any]:
    """Return the gradient of every parameter that requires one; None where none arrived."""
    seed()
    model.train()
    for parameter in model.parameters():
        parameter.grad = None
    _loss(model).backward()
    found = {name: parameter.grad for name, parameter in learnt(model).items()}
    model.eval()
    return found


def learnt(model: Any) -> dict[str, Any]:
    """Return the parameters that require grad, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def tensors(model: Any) -> list[Any]:
    """Return every parameter and buffer of a model."""
    return [*model.parameters(), *model.buffers()]


def any_of(gradient: Any) -> bool:
    """Return whether a gradient is there and not all zeros."""
    return gradient is not None and bool((gradient != 0).any())


def same(left: Any, right: Any) -> bool:
    """Return whether two tensors are equal to the bit."""
    import torch

    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return torch.equal(left, right.to(left.device))


def distance(left: Any, right: Any) -> float:
    """Return the largest difference between two tensors, relative to the larger of 1 and left."""
    if left.shape != right.shape:
        return float("inf")
    right = right.to(left.device)
    return float(((left - right).abs() / left.abs().clamp(min=1)).max())


def saved(adapter: Any, model: Any, parent: Path) -> Path:
    """Return an empty folder into which the adapter was saved."""
    folder = parent / "adapter"
    folder.mkdir()
    adapter.save(model, folder)
    return folder


def unwelcome_files(folder: Path) -> list[str]:
    """Return the files that are neither safetensors, JSON nor a README, or that hold a pickle."""
    bad = []
    for path in sorted(p for p in folder.rglob("*") if not p.is_dir()):
        known = path.suffix in (".safetensors", ".json") or path.name.startswith("README")
        head = path.read_bytes()[:4]
        # A pickle begins with 0x80 and its protocol; torch.save() wraps one in a zip.
        pickled = head[:1] == b"\x80" or head.startswith(b"PK\x03\x04")
        if path.is_symlink() or not known or (pickled and path.suffix != ".safetensors"):
            bad.append(path.relative_to(folder).as_posix())
    return bad


def saved_tensors(folder: Path) -> dict[str, Any]:
    """Return the tensors of all safetensors files below a folder, by file and name."""
    from safetensors.torch import load_file

    return {
        f"{path.name}:{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def copies(held: dict[str, Any], base: Any) -> list[str]:
    """Return the names of the saved tensors that equal a weight of the base."""
    weights = [p for p in base.parameters() if p.numel() >= SMALL]
    return [
        name
        for name, tensor in held.items()
        if tensor.numel() >= SMALL
        and any(
            tensor.numel() == weight.numel() and same(tensor.reshape(weight.shape), weight)
            for weight in weights
        )
    ]


def _loss(model: Any) -> Any:
    import torch

    ids_BT = tokens().to(next(model.parameters()).device)
    return model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), labels=ids_BT).loss


def pack_padding_free(model: Any) -> None:
    """Let a base model take rows end to end instead of padded."""
    from llmft.modeling import attention

    attention.register()
    model.set_attn_implementation(attention.NAME)


def row_losses(model: Any) -> Any:
    """Return the summed loss of each of three rows of unlike length, shape (3,), in eval mode."""
    import torch

    from llmft.modeling.forward import label_nll

    ids = [tuple(row.tolist()) for row in tokens()]
    rows = [Encoded(row[:n], (-100, *row[1:n])) for row, n in zip(ids, (12, 3, 7), strict=True)]
    model.eval()
    with torch.no_grad():
        return label_nll(model, rows).per_row(3)
