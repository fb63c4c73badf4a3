"""Kernels of a training step against the same formulas in fp64, forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bocage.errors import BocageWarning
from bocage.models import native, training, training_kernels
from bocage.models.selection import RowGroup
from bocage.models.training import add_mlp, linear
from bocage.models.training_attention import attends, rotary_attention

NO_KERNELS = native.why_unavailable("training")
needs_kernels = pytest.mark.skipif(NO_KERNELS is not None, reason=str(NO_KERNELS))

FP32, BF16 = 2e-6, 1e-2
"""Bounds of the relative error; fp32 of torch itself errs by up to 1e-6 here."""


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def leaves(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def gradients(function, parameters: list[Tensor], *, dtype=torch.float32, autocast=False):
    """Answer and gradients of a fixed weighted sum of it."""
    own = [p.detach().to(dtype, copy=True).requires_grad_() for p in parameters]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = function(*own)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    out.backward(weights.to(out.dtype))
    return [out.detach(), *(p.grad for p in own)]


def normed(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    return functional.layer_norm(x, gain.shape, gain, shift, 1e-6)


def norm_of(gain: Tensor, shift: Tensor) -> nn.LayerNorm:
    """A norm that holds these tensors themselves, so that they get the gradients."""
    norm = nn.LayerNorm(len(gain), eps=1e-6)
    del norm.weight, norm.bias
    norm.weight, norm.bias = gain, shift
    return norm


class Layer:
    """Weight and bias as a linear layer has them."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


LINEAR = {
    "alone": (
        linear,
        lambda x, w, b: x @ w.T + b,
        [(101, 96), (160, 96), (160,)],
    ),
    "deep": (
        linear,
        lambda x, w, b: x @ w.T + b,
        [(70, 2048), (64, 2048), (64,)],
    ),
    "after a norm": (
        lambda x, w, b, g, s: linear(x, w, b, norm=norm_of(g, s)),
        lambda x, w, b, g, s: normed(x, g, s) @ w.T + b,
        [(333, 128), (384, 128), (384,), (128,), (128,)],
    ),
    "added to something": (
        lambda x, w, b, p: linear(x, w, b, plus=p),
        lambda x, w, b, p: p + x @ w.T + b,
        [(64, 192), (192, 192), (192,), (64, 192)],
    ),
}


@needs_kernels
@pytest.mark.parametrize("case", LINEAR)
@pytest.mark.parametrize("half", [False, True])
def test_a_linear_map_and_its_gradients_are_those_of_fp64(case, half):
    ours, plain, shapes = LINEAR[case]
    parameters = leaves(*shapes)
    found = gradients(ours, parameters, autocast=half)
    expected = gradients(plain, parameters, dtype=torch.float64)
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < (BF16 if half else FP32)


def mlp_of(x, *weights, scale=None):
    gain, shift, w1, b1, w2, b2 = weights
    return add_mlp(x, norm_of(gain, shift), Layer(w1, b1), Layer(w2, b2), scale)


MLP = [(130, 64), (64,), (64,), (256, 64), (256,), (64, 256), (64,)]


@needs_kernels
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_an_mlp_and_its_gradients_are_those_of_fp64(half, dropped):
    parameters = leaves(*MLP)
    scale = torch.arange(130.0)[:, None] % 3 if dropped else None

    def plain(x, *weights):
        gain, shift, w1, b1, w2, b2 = weights
        branch = functional.gelu(normed(x, gain, shift) @ w1.T + b1) @ w2.T + b2
        return x + branch * (1 if scale is None else scale.double())

    found = gradients(lambda *p: mlp_of(*p, scale=scale), parameters, autocast=half)
    expected = gradients(plain, parameters, dtype=torch.float64)
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < (BF16 if half else FP32)


@needs_kernels
def test_gelu_is_right_where_it_is_steep_and_where_it_is_flat():
    before = torch.linspace(-12, 12, 32 * 400).view(400, 32)
    slope, value = training_kernels.product_gelu_back(
        torch.eye(32)[torch.zeros(400, dtype=torch.long)].mul(0).add(1 / 32),
        training_kernels.pack_weight(torch.ones(32, 32), torch.float32, turned=True),
        before,
        dtype=torch.float32,
        row_scale=None,
    )
    x = before.double().requires_grad_()
    functional.gelu(x).sum().backward()
    assert (value - functional.gelu(x)).abs().max() < 5e-7
    assert (slope - x.grad).abs().max() < 5e-7


def plain_attention(q, k, v, groups):
    """Row by row, as the formula has it."""
    outputs, asked, read = [], 0, 0
    for group in groups:
        for _ in range(group.n_rows):
            own_q = q[asked : asked + group.n_queries]
            own_k, own_v = k[read : read + group.n_read], v[read : read + group.n_read]
            scores = torch.einsum("imd,jmd->mij", own_q, own_k) / math.sqrt(q.shape[-1])
            outputs.append(torch.einsum("mij,jmd->imd", scores.softmax(-1), own_v))
            asked, read = asked + group.n_queries, read + group.n_read
    return torch.cat(outputs).flatten(1)


def turned(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = torch.einsum("nx,xmk->nmk", positions.to(x.dtype), frequencies)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def group(n_rows: int, n_queries: int, n_read: int) -> RowGroup:
    return RowGroup(n_rows=n_rows, n_queries=n_queries, n_read=n_read)


OVER_ITSELF = [group(1, 37, 37), group(2, 70, 70), group(1, 1, 1)]
OVER_A_CONTEXT = [group(1, 37, 5), group(2, 7, 90), group(1, 0, 8)]


@needs_kernels
@pytest.mark.parametrize("head_width", training_kernels.HEAD_WIDTHS)
@pytest.mark.parametrize("half", [False, True])
def test_attention_over_itself_and_its_gradients_are_those_of_fp64(head_width, half):
    n, heads = 178, 3
    positions = 20 * torch.rand(n, 3, generator=torch.Generator().manual_seed(3))
    x, frequencies = leaves((n, 3, heads, head_width), (3, heads, head_width // 2))
    dtype = torch.bfloat16 if half else torch.float32
    x = x.to(dtype).float()

    def ours(x, frequencies):
        return rotary_attention(x.to(dtype), positions, frequencies, OVER_ITSELF)

    def plain(x, frequencies):
        q, k = (turned(x[:, i], positions, frequencies) for i in range(2))
        return plain_attention(q, k, x[:, 2], OVER_ITSELF)

    found = gradients(ours, [x, frequencies / 10])
    expected = gradients(plain, [x, frequencies / 10], dtype=torch.float64)
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < (BF16 if half else FP32)


@needs_kernels
@pytest.mark.parametrize("head_width", training_kernels.HEAD_WIDTHS)
def test_attention_over_a_context_and_its_gradients_are_those_of_fp64(head_width):
    n, m, heads = 51, 193, 2
    generator = torch.Generator().manual_seed(3)
    places = [20 * torch.rand(k, 3, generator=generator) for k in (n, m)]
    shapes = (n, 1, heads, head_width), (m, 2, heads, head_width), (3, heads, head_width // 2)
    x, context, frequencies = leaves(*shapes)

    def ours(x, context, frequencies):
        return rotary_attention(
            x,
            places[0],
            frequencies,
            OVER_A_CONTEXT,
            context=context,
            context_positions=places[1],
        )

    def plain(x, context, frequencies):
        q = turned(x[:, 0], places[0], frequencies)
        k = turned(context[:, 0], places[1], frequencies)
        return plain_attention(q, k, context[:, 1], OVER_A_CONTEXT)

    parameters = [x, context, frequencies / 10]
    found = gradients(ours, parameters)
    expected = gradients(plain, parameters, dtype=torch.float64)
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < FP32


@needs_kernels
def test_attention_without_positions_turns_nothing():
    (x,) = leaves((60, 3, 2, 16))
    groups = [group(2, 30, 30)]
    found = gradients(lambda x: rotary_attention(x, None, None, groups), [x])
    expected = gradients(lambda x: plain_attention(*x.unbind(1), groups), [x], dtype=torch.float64)
    assert all(relative(a, b) < FP32 for a, b in zip(found, expected, strict=True))


@needs_kernels
def test_who_reads_nothing_gets_nothing_and_changes_nothing():
    x, context = leaves((20, 1, 2, 32), (30, 2, 2, 32))
    groups = [group(1, 10, 30), group(1, 10, 0)]
    out, by_x, by_context = gradients(
        lambda x, c: rotary_attention(x, None, None, groups, context=c), [x, context]
    )
    assert out[10:].abs().max() == 0
    assert by_x[10:].abs().max() == 0
    alone = gradients(
        lambda x, c: rotary_attention(x, None, None, groups[:1], context=c), [x[:10], context]
    )[0]
    assert torch.equal(out[:10], alone)
    assert by_context.isfinite().all()


@needs_kernels
def test_large_scores_do_not_overflow():
    (x,) = leaves((64, 3, 2, 16))
    found = gradients(lambda x: rotary_attention(x * 60, None, None, [group(1, 64, 64)]), [x])
    assert all(part.isfinite().all() for part in found)


@needs_kernels
def test_a_row_that_is_not_a_number_stays_alone():
    x, *rest = leaves(*MLP)
    whole = mlp_of(x, *rest)
    x[5] = torch.nan
    broken = mlp_of(x, *rest)
    others = torch.arange(len(x)) != 5
    assert broken[5].isnan().all()
    assert torch.equal(broken[others], whole[others])
    (y,) = leaves((90, 3, 2, 16))
    groups = [group(3, 30, 30)]
    attended = rotary_attention(y, None, None, groups)
    y[35] = torch.inf
    spoiled = rotary_attention(y, None, None, groups)
    assert not spoiled[30:60].isfinite().all()
    assert torch.equal(spoiled[:30], attended[:30])
    assert torch.equal(spoiled[60:], attended[60:])


@needs_kernels
def test_the_same_step_gives_the_same_bytes():
    parameters = leaves(*MLP)
    first, second = (gradients(mlp_of, parameters) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    (x,) = leaves((300, 3, 2, 64))
    groups = [group(3, 100, 100)]
    first, second = (
        gradients(lambda x: rotary_attention(x, None, None, groups), [x]) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_kernels
def test_gradients_of_two_backward_passes_add_up():
    parameters = [p.requires_grad_() for p in leaves(*MLP)]
    for _ in range(2):
        mlp_of(*parameters).square().sum().backward()
    twice = [p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None
    mlp_of(*parameters).square().sum().backward()
    assert all(torch.equal(a, 2 * p.grad) for a, p in zip(twice, parameters, strict=True))


@needs_kernels
def test_views_of_other_tensors_are_multiplied_as_they_look():
    x, w, b = leaves((96, 101), (64, 200), (64,))
    out = linear(x.T, w[:, 3:99], b)
    assert relative(out, x.T.double() @ w[:, 3:99].double().T + b.double()) < FP32


@needs_kernels
def test_no_tokens_have_gradients_of_zero():
    x, *rest = leaves(*MLP)
    out, by_x, *others = gradients(mlp_of, [x[:0], *rest])
    assert out.shape == by_x.shape == (0, 64)
    assert all(g.shape == p.shape and not g.any() for g, p in zip(others, rest, strict=True))
    (y,) = leaves((0, 3, 2, 16))
    out, by_y = gradients(lambda y: rotary_attention(y, None, None, [group(2, 0, 0)]), [y])
    assert out.shape == (0, 32)
    assert by_y.shape == y.shape


def test_without_kernels_the_plain_form_runs(monkeypatch):
    parameters = leaves(*MLP)
    expected = gradients(mlp_of, parameters)
    monkeypatch.setattr(training_kernels, "why_unavailable", lambda: "no such processor")
    assert not attends(torch.zeros(4, 3, 2, 16))
    monkeypatch.setattr(training_kernels, "_library", None)  # nobody asks
    found = gradients(mlp_of, parameters)
    assert all(relative(a, b) < FP32 for a, b in zip(found, expected, strict=True))


def test_a_processor_with_tiles_and_no_compiler_says_what_it_costs(monkeypatch):
    def failing(name):
        raise RuntimeError("there is no C++ compiler (g++)")

    monkeypatch.setattr(native, "library", failing)
    for name, value in (("system", "Linux"), ("machine", "x86_64")):
        monkeypatch.setattr(native.platform, name, lambda value=value: value)
    flags = frozenset({"amx_tile", "amx_bf16", "avx512_bf16", "avx512bw"})
    monkeypatch.setattr(native, "cpu_flags", lambda: flags)
    with pytest.warns(BocageWarning, match=r"no C\+\+ compiler.*plain layers"):
        assert training_kernels.why_unavailable.__wrapped__() == "there is no C++ compiler (g++)"
    monkeypatch.setattr(native, "cpu_flags", frozenset)  # nothing to mend: not a word
    assert "lacks" in str(training_kernels.why_unavailable.__wrapped__())


def test_widths_types_and_devices_without_kernels_take_the_plain_form():
    assert not training.usable(torch.zeros(3, 40), 40)
    assert not training.usable(torch.zeros(3, 64, dtype=torch.float64), 64)
    assert not training.usable(torch.zeros(3, 0), 0)
    assert not training.usable(torch.zeros(3, 64, device="meta"), 64)
    x, w, b = leaves((5, 40), (24, 40), (24,))
    assert torch.equal(linear(x, w, b), functional.linear(x, w, b))
    assert linear(x[:0], w, b).shape == (0, 24)
