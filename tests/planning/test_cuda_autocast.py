"""Autocast in a GPU's plan: the operations of torch's own list are in float32."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from llmft.planning.cuda_autocast import SUMS, WIDE, CudaAutocast


def test_its_lists_are_of_torchs():
    path = Path(torch.__file__).with_name("include").joinpath("ATen/autocast_mode.h")
    if not path.is_file():
        pytest.skip("this torch ships no headers")
    text = path.read_text()

    def listed(name: str) -> set[str]:
        body = text.split(f"define AT_FORALL_{name}(_)")[1].split("\n\n")[0].split("#define")[0]
        return set(re.findall(r"_\((\w+)", body))

    assert listed("FP32") >= WIDE
    assert listed("FP32_SET_OPT_DTYPE") >= SUMS


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: F.layer_norm(x, x.shape[-1:]), lambda x: x**3, lambda x: torch.pow(x, 2),
        lambda x: x.sum(), lambda x: F.softmax(x, -1), lambda x: torch.rsqrt(x.abs()), torch.exp,
    ],
)  # fmt: skip
def test_it_widens_under_autocast_alone(operation):
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    with CudaAutocast():
        assert operation(x).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert operation(x).dtype == torch.float32
            assert (x @ x.t()).dtype == torch.bfloat16
            assert F.silu(x).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert (x + 1).dtype == torch.bfloat16


def test_a_type_that_is_asked_for_stays():
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    with CudaAutocast(), torch.autocast("cpu", torch.bfloat16):
        assert x.sum(dtype=torch.float64).dtype == torch.float64
        assert F.softmax(x, -1, dtype=torch.bfloat16).dtype == torch.bfloat16
