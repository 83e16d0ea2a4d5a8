import pytest
import torch

from fewer.generate.transformer.params import SanaParams
from fewer.generate.transformer.sana import SanaTransformer

SMALL = {
    "in_channels": 4, "out_channels": 4, "heads": 2, "head_dim": 16, "depth": 2, "cross_heads": 1,
    "cross_head_dim": 32, "caption_channels": 6, "sample_size": 4,
}  # fmt: skip


def network(qk_norm: bool) -> SanaTransformer:
    net = SanaTransformer(SanaParams(**SMALL, qk_norm=qk_norm))
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():  # norms, too, that do something
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return net


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    latents, text = torch.randn(2, 4, 3, 5, generator=generator), torch.randn(2, 7, 6, generator=generator)
    mask = torch.tensor([[1, 1, 0, 0, 0, 0, 0], [1] * 7])
    return latents.to(dtype), torch.tensor([20.0, 900.0]), text.to(dtype), mask


@pytest.mark.parametrize("qk_norm", [False, True])
def test_result_and_every_gradient_equal_those_of_the_modules(qk_norm: bool) -> None:
    net, arguments = network(qk_norm).double(), inputs(torch.float64)
    above = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(3)).double()
    found = []
    for net.whole in (False, True):
        out = net(*arguments)
        found.append((out, torch.autograd.grad((out * above).sum(), list(net.parameters()))))
    assert torch.allclose(found[0][0], found[1][0])
    largest = max(float(gradient.norm()) for gradient in found[0][1])
    for (name, _), plain, ours in zip(net.named_parameters(), found[0][1], found[1][1], strict=True):
        assert torch.allclose(plain, ours, rtol=1e-7, atol=1e-10 * largest), name


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_weights_in_fp32_get_gradients_in_fp32_from_products_in_bf16() -> None:
    net, arguments = network(False), inputs(torch.float32)
    exact = torch.autograd.grad(net(*arguments).square().sum(), list(net.parameters()))
    net.whole = True
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(*arguments).float().square().sum()
    ours = torch.autograd.grad(loss, list(net.parameters()))
    assert all(gradient.dtype == torch.float32 for gradient in ours)
    a, b = (torch.cat([gradient.flatten() for gradient in found]) for found in (ours, exact))
    assert float((a - b).norm() / b.norm()) < 0.05
