"""What is done for speed on a CPU changes no result by more than rounding."""

from __future__ import annotations

import copy

import pytest
import torch

from training import layout, network
from training.text import Conditioning
from training.unet import UnetConfig

CPU = torch.device("cpu")


def told(count: int, width: int) -> Conditioning:
    mask = torch.arange(6)[None, :] < torch.arange(2, 2 + count)[:, None]
    return Conditioning(torch.randn(count, 6, width) * mask[:, :, None], mask, torch.randn(count, width))


@pytest.mark.parametrize("few", [0, 1 << 16])
def test_a_network_answers_the_same_with_either_attention(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions of different lengths, so that the mask counts."""
    monkeypatch.setattr(layout, "_FEW", few)
    torch.manual_seed(0)
    config = UnetConfig(block_out_channels=(32, 32), layers_per_block=1, attention_heads=2)
    plain = network.build(config, channels=3, side=8, width=16)
    hastened = copy.deepcopy(plain)
    layout.hasten(hastened, CPU)
    assert any(isinstance(p, layout.ProductsOrFused) for p in hastened.attn_processors.values())
    xt, t = torch.randn(3, 3, 8, 8), torch.tensor([1, 500, 900])
    asked = told(3, 16)
    outputs = [network.predict(each, xt, t, asked) for each in (plain, hastened)]
    assert torch.allclose(*outputs, atol=1e-5)
    for output in outputs:
        output.square().sum().backward()
    for one, other in zip(plain.parameters(), hastened.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_many_positions_are_left_to_the_fused_attention() -> None:
    """Its answer is that of the products; which one was asked shows in what is kept for the backward pass."""
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    kept = {}
    for positions in (256, 257):
        attention = Attention(query_dim=8, heads=2, dim_head=4, processor=layout.ProductsOrFused())
        largest = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal largest
            largest = max(largest, tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            attention(torch.randn(1, positions, 8))
        kept[positions] = largest
    assert kept[256] == 2 * 256 * 256
    assert kept[257] < 10_000


def test_a_cpu_keeps_rows_of_pixels_together_and_a_gpu_channels() -> None:
    assert layout.memory_format(CPU) is torch.contiguous_format
    assert layout.memory_format(torch.device("cuda")) is torch.channels_last
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert layout.laid_out(last).is_contiguous()
    elsewhere = torch.empty(2, 3, 4, 5, device="meta")
    assert layout.laid_out(elsewhere).is_contiguous(memory_format=torch.channels_last)
    film = elsewhere[:, :, None]
    assert layout.laid_out(film) is film


def test_a_network_elsewhere_is_left_alone() -> None:
    plain = network.build(UnetConfig(block_out_channels=(32,), layers_per_block=1), channels=3, side=4, width=8)
    before = dict(plain.attn_processors)
    layout.hasten(plain, torch.device("cuda"))
    assert plain.attn_processors == before
