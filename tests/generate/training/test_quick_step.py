from unittest.mock import patch

import pytest
import torch

from fewer.generate.training.flow import FlowBatch
from fewer.generate.training.quick_step import make_quick
from fewer.generate.transformer import block_passes
from fewer.generate.transformer.initialise import initialise
from fewer.generate.transformer.params import SanaParams
from fewer.generate.transformer.sana import SanaTransformer


def network() -> SanaTransformer:
    params = SanaParams(
        in_channels=4, out_channels=4, heads=1, head_dim=16, depth=1, cross_heads=1, cross_head_dim=16,
        caption_channels=6, sample_size=4, qk_norm=True,
    )  # fmt: skip
    return initialise(SanaTransformer(params), torch.Generator().manual_seed(0))


def batch() -> FlowBatch:
    latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    return FlowBatch(latents, torch.ones(3, 2, 6), torch.ones(3, 2), torch.rand(3), latents.flip(0))


def test_the_whole_step_is_taken_where_it_agrees_and_nothing_is_changed() -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    make_quick(net, batch(), torch.bfloat16)
    assert net.whole
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_wrong_gradients_are_seen_even_behind_a_last_layer_of_zeros(caplog: pytest.LogCaptureFixture) -> None:
    net = network()
    assert not net.proj_out.weight.any()
    wrong = block_passes.gated_depthwise_backward

    def half(*arguments: object) -> tuple[torch.Tensor, ...]:
        return tuple(part / 2 for part in wrong(*arguments))  # type: ignore[arg-type]

    with (
        patch.object(block_passes, "gated_depthwise_backward", half),
        patch.object(torch.nn.Module, "compile"),
    ):
        make_quick(net, batch(), torch.bfloat16)
    assert not net.whole
    assert "is off by" in caplog.text


def test_what_has_something_attached_or_is_long_is_compiled_by_blocks_if_asked() -> None:
    for compiled in (True, False):
        net = network()
        net.transformer_blocks[0].attn1.to_q = torch.nn.Sequential(net.transformer_blocks[0].attn1.to_q)
        with patch.object(torch.nn.Module, "compile") as called:
            make_quick(net, batch(), torch.bfloat16, compiled)
        assert not net.whole and called.call_count == int(compiled)


@pytest.mark.parametrize("kind", [RuntimeError, type("TritonError", (Exception,), {})])
def test_what_cannot_be_compiled_here_falls_back(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    net = network()
    failing = patch.object(block_passes, "joint_attention", side_effect=kind("no such instruction"))
    with failing, patch.object(torch.nn.Module, "compile") as compiled:
        make_quick(net, batch(), torch.bfloat16)
    assert not net.whole and compiled.call_count == 1
    assert "no such instruction" in caplog.text
