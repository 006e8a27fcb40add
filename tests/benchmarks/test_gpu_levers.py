"""The count of what levers save on a GPU: held to a count by hand, and run small."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rehearsal.pretend_gpu import REASON, TRIED

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
pytestmark = pytest.mark.skipif(not TRIED, reason=REASON)
ROWS = (512, 512)


@pytest.fixture(scope="module")
def levers():
    """The program, as it is started from its folder."""
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    import levers

    yield levers
    sys.path[:] = before
    for name in ("levers", "plan_memory", "plan_recipes", "shape", "record"):
        sys.modules.pop(name, None)


def test_flops_are_those_by_hand_and_time_is_the_roofline_of_each_kernel(levers):
    card = levers.named_card("H100")
    found = levers._counted(levers.Step(passes=(ROWS,), checkpointed=False), 2, card)
    tokens, layers, rank = sum(ROWS), 2, 16
    q, kv, mlp, head = 4096 * 4096, 4096 * 1024, 4096 * 14336, 4096 * 128_256
    frozen = layers * (2 * q + 2 * kv + 3 * mlp) + head
    # The embeddings are frozen: nobody asks for gradients of the first layer's q, k and v inputs.
    unasked = q + 2 * kv
    adapter = layers * rank * (2 * 2 * 4096 + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    scores = sum(length**2 for length in ROWS) * layers * 4096 * 2  # of queries and of values
    # Attention's backward pass is five products for the forward pass's two.
    by_hand = 2 * tokens * (2 * frozen - unasked + 3 * adapter) + 2 * scores * 3.5
    assert found.flops == pytest.approx(by_hand, rel=0.005)
    assert found.waits == 1
    least = found.flops / (levers.LARGE_PRODUCT * card.flops)
    assert 1e3 * least < found.ms
    assert found.bytes > 2 * 2 * frozen  # read for forward and backward, in 16 bits
    fewer = levers._counted(
        levers.Step(passes=(ROWS,), checkpointed=False, changes=(levers._one_kernel,)), 2, card
    )
    assert fewer.flops == found.flops
    assert fewer.kernels < 0.8 * found.kernels
    assert fewer.bytes < found.bytes


@pytest.mark.extended
def test_every_lever_is_counted_and_saves_something(levers, monkeypatch):
    small = [
        (name, *(replace(step, passes=tuple(tuple(max(2, length // 16) for length in one)
                                            for one in step.passes)) for step in both))
        for name, *both in levers.LEVERS
    ]  # fmt: skip
    lines = list(levers.table(levers.named_card("H100"), small, layers=3))
    assert len(lines) == 2 + 2 * (len(small) + 1)
    for name, before, after in small:
        one, other = (
            levers.counted(step, levers.named_card("H100"), 3) for step in (before, after)
        )
        saved = [a > b for a, b in zip(one.told, other.told, strict=True)]
        assert any(saved), name


def test_a_page_without_marks_is_refused(levers, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x: written by p -->\nold\n<!-- end of x -->\nafter\n")
    levers.fill("x", "p", ["new"], page)
    assert page.read_text() == (
        "before\n<!-- x: written by p -->\n\nnew\n\n<!-- end of x -->\nafter\n"
    )
    with pytest.raises(SystemExit, match="no marks for 'y'"):
        levers.fill("y", "p", ["new"], page)
