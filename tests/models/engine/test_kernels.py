"""Each kernel gives what its definition gives in fp64, within the rounding of its precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bocage.models.engine import kernels
from bocage.models.engine.linear import Linear

from .gate import needs_kernels

pytestmark = needs_kernels


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def as_rows(x: Tensor, n_rows: int) -> Tensor:
    """What attention gives, in fp32, as rows [n_rows, D]."""
    return x if x.dim() == 2 else kernels.from_tiles(x, (n_rows, x.shape[1] * 32)).float()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("head_width", [16, 64])
@pytest.mark.parametrize("n_tokens", [1, 15, 16, 17, 33, 250])
@pytest.mark.parametrize("spread", [1.0, 12.0], ids=["usual", "scores over 100"])
def test_attention_kernel(head_width: int, n_tokens: int, spread: float, precision: str) -> None:
    heads, n_batch = 4, 2
    generator = torch.Generator().manual_seed(n_tokens)
    qkv = torch.randn(n_batch, n_tokens, 3, heads, head_width, generator=generator)
    qkv[:, :, :2] *= spread
    qkv = qkv.to(PRECISIONS[precision])
    zeros = torch.zeros(1, n_tokens, dtype=torch.int32)
    lengths = torch.tensor([n_tokens, max(n_tokens - 9, 1)])
    order = kernels.TokenOrder(time=zeros, place=zeros, lengths=lengths)
    ours = as_rows(kernels.attention(qkv.flatten(2), heads, None, order), n_batch * n_tokens)
    # The kernel rounds queries once more, scaled so that exponentials are powers of two.
    q, k, v = qkv.float().permute(2, 0, 3, 1, 4)
    scale = head_width**-0.5 * math.log2(math.e)
    q = (q * scale).to(qkv.dtype).double()
    for b, length in enumerate(lengths.tolist()):
        scores = q[b, :, :length] @ k[b, :, :length].double().mT * math.log(2)
        exact = (scores.softmax(dim=-1) @ v[b, :, :length].double()).transpose(0, 1).flatten(1)
        error = (ours.view(n_batch, n_tokens, -1)[b, :length] - exact).abs().max()
        if precision == "bf16":
            assert error < 0.02  # 2^-9 of shares and of values to 4
        else:  # scores of 1000 lose digits in torch too
            theirs = functional.scaled_dot_product_attention(
                *qkv[b : b + 1, :length].permute(2, 0, 3, 1, 4)
            )
            theirs = theirs[0].transpose(0, 1).flatten(1)
            assert error <= 3 * (theirs - exact).abs().max() + 1e-6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("head_width", [16, 64])
@pytest.mark.parametrize("n_queries", [1, 16, 37])
@pytest.mark.parametrize("spread", [1.0, 30.0], ids=["usual", "scores over 100"])
def test_reading_kernel(head_width: int, n_queries: int, spread: float, precision: str) -> None:
    heads, n_batch, n_tokens = 4, 3, 83
    dtype = PRECISIONS[precision]
    generator = torch.Generator().manual_seed(n_queries)
    q = torch.randn(heads, n_queries, head_width, generator=generator) * spread
    q = (q * head_width**-0.5 * math.log2(math.e)).to(dtype)
    kv = torch.randn(n_batch, n_tokens, 2, heads, head_width, generator=generator).to(dtype)
    lengths = torch.tensor([n_tokens, 1, 33])
    zeros = torch.zeros(1, n_tokens, dtype=torch.int32)
    order = kernels.TokenOrder(time=zeros, place=zeros, lengths=lengths)
    ours = kernels.reading(
        functional.pad(q, (0, 0, 0, -n_queries % 16)).contiguous(),
        q.float().norm(dim=-1).amax(dim=-1),
        kv.flatten(2),
        None,
        order,
        n_queries=n_queries,
    )
    found = as_rows(ours, n_batch * n_queries).view(n_batch, n_queries, -1)
    k, v = kv.double().permute(2, 0, 3, 1, 4)
    bound = 0.02 if precision == "bf16" else 2e-6 if spread == 1 else 1e-4
    for b, length in enumerate(lengths.tolist()):
        scores = q.double() @ k[b, :, :length].mT * math.log(2)
        exact = (scores.softmax(dim=-1) @ v[b, :, :length]).transpose(0, 1).flatten(1)
        assert (found[b] - exact).abs().max() < bound


def plain_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-5)


@pytest.mark.parametrize("shape", [(1, 32, 32), (77, 128, 384), (33, 3072, 64), (250, 768, 96)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_product_kernel(shape: tuple[int, int, int], precision: str) -> None:
    n_rows, n_in, n_out = shape
    dtype = PRECISIONS[precision]
    generator = torch.Generator().manual_seed(n_in)
    x = (torch.randn(n_rows, n_in, generator=generator) * 3 + 1).to(dtype)
    weight = torch.randn(n_out, n_in, generator=generator) / n_in**0.5
    bias = torch.randn(n_out, generator=generator)
    plus = torch.randn(n_rows, n_out, generator=generator).to(dtype)
    linear = Linear(weight, bias, precision)
    exact_weight = weight.to(dtype).double()
    product = x.double() @ exact_weight.mT + bias
    bound = 2e-5 if dtype == torch.float32 else 2**-8 * float(product.abs().max())
    assert (linear.rows(x) - product).abs().max() <= bound
    added = linear.rows(x, plus=plus)
    assert (added - product - plus).abs().max() <= 2 * bound
    if n_in <= 1024:  # a norm reads whole rows
        normed = functional.layer_norm(x.double(), (n_in,), eps=1e-5)
        expected = functional.gelu(normed @ exact_weight.mT + bias)
        ours = Linear(weight, bias, precision, norm=plain_norm(n_in)).rows(x, gelu=True)
        assert (ours - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("shape", [(1, 32, 32), (77, 128, 384), (530, 3072, 64), (650, 768, 96)])
def test_products_of_tiles_equal_those_of_rows(shape: tuple[int, int, int]) -> None:
    n_rows, n_in, n_out = shape
    generator = torch.Generator().manual_seed(n_in)
    x = torch.randn(n_rows, n_in, generator=generator).bfloat16()
    weight = torch.randn(n_out, n_in, generator=generator) / n_in**0.5
    bias = torch.randn(n_out, generator=generator)
    linear = Linear(weight, bias, "bf16")
    plus = torch.randn(n_rows, n_out, generator=generator).bfloat16()
    tiles = kernels.to_tiles(x)
    assert torch.equal(tiles.transpose(1, 2).reshape(-1, n_in)[:n_rows], x)
    assert torch.equal(kernels.from_tiles(tiles, x.shape), x)
    assert torch.equal(linear(tiles, n_rows, to_rows=True), linear.rows(x))
    normed = Linear(weight, bias, "bf16", norm=plain_norm(n_in))
    made, expected = normed(tiles, n_rows, gelu=True), normed.rows(x, gelu=True)
    assert torch.equal(kernels.from_tiles(made, expected.shape), expected)
    sums = kernels.to_tiles(plus)
    assert linear(tiles, n_rows, plus=sums) is sums
    assert torch.equal(kernels.from_tiles(sums, plus.shape), linear.rows(x, plus=plus))


@pytest.mark.parametrize("shape", [(1, 64, 32), (77, 768, 96), (530, 3072, 64)])
def test_int8_products_are_those_of_their_codes(shape: tuple[int, int, int]) -> None:
    n_rows, n_in, n_out = shape
    generator = torch.Generator().manual_seed(n_in)
    x = (torch.randn(n_rows, n_in, generator=generator) * 3 + 1).bfloat16()
    weight = torch.randn(n_out, n_in, generator=generator) / n_in**0.5
    bias = torch.randn(n_out, generator=generator)
    plus = torch.randn(n_rows, n_out, generator=generator).bfloat16()
    linear, tiles = Linear(weight, bias, "int8"), kernels.to_tiles(x)

    def to_codes(rows: Tensor) -> Tensor:
        scale = rows.abs().amax(dim=1, keepdim=True) / 127
        return (rows / scale).round() * scale

    product = to_codes(x.double()) @ to_codes(weight.double()).mT + bias
    # Codes at the border of two may round differently in fp32: a few steps of one factor.
    bound = 2**-8 * float(product.abs().max()) + 0.02
    assert (linear(tiles, n_rows, to_rows=True) - product).abs().max() <= bound
    sums = kernels.to_tiles(plus)
    linear(tiles, n_rows, plus=sums)
    assert (kernels.from_tiles(sums, plus.shape) - product - plus).abs().max() <= 2 * bound
    normed = functional.layer_norm(x.double(), (n_in,), eps=1e-5)
    expected = functional.gelu(to_codes(normed) @ to_codes(weight.double()).mT + bias)
    made = Linear(weight, bias, "int8", norm=plain_norm(n_in))(tiles, n_rows, gelu=True)
    assert (kernels.from_tiles(made, expected.shape) - expected).abs().max() <= 0.03


def test_the_norm_of_a_product_does_not_mind_a_mean() -> None:
    """The mean is taken off after the product: a large one must not cost digits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 768, generator=generator) * 0.5 + 30
    weight = torch.randn(96, 768, generator=generator) / 768**0.5
    linear = Linear(weight, torch.zeros(96), "bf16", norm=plain_norm(768))
    normed = functional.layer_norm(x.bfloat16().double(), (768,), eps=1e-5)
    expected = normed @ weight.bfloat16().double().mT
    error = linear.rows(x.bfloat16()) - expected
    assert error.abs().max() <= 2**-8 * float(expected.abs().max())


def test_gelu_of_products() -> None:
    x = torch.linspace(-12, 12, 24032).view(-1, 32)
    for precision, dtype in PRECISIONS.items():
        same = Linear(torch.eye(32), torch.zeros(32), precision)
        exact = functional.gelu(x.to(dtype).double())
        error = (same.rows(x.to(dtype), gelu=True) - exact).abs()
        if dtype == torch.float32:
            assert error.max() < 1e-6
        else:
            assert (error <= 2**-8 * exact.abs() + 1e-4).all()


def test_fp32_products_are_as_exact_as_torch() -> None:
    """Three bf16 numbers hold 24 bits: no value, however mixed in size, loses more than in fp32."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 768, generator=generator) * 10 ** torch.linspace(-6, 4, 768)
    weight = torch.randn(128, 768, generator=generator)
    exact = x.double() @ weight.double().mT
    scale = x.double().abs() @ weight.double().abs().mT
    ours = Linear(weight, torch.zeros(128), "fp32").rows(x)
    theirs = functional.linear(x, weight)
    assert ((ours - exact).abs() / scale).max() <= 4 * ((theirs - exact).abs() / scale).max()
