import pytest
import torch

from fewer.kernels.linear_attention import reference_apply, reference_state

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1, 1, 32), (2, 70, 2, 32), (1, 123, 3, 16), (1, 20, 1, 8)])
def test_both_passes_agree_with_the_reference(dtype: torch.dtype, shape: tuple, draw) -> None:
    from fewer.kernels.triton.linear_attention import (
        launch_apply,
        launch_linear_attention,
        launch_state,
    )

    q, k, v = (draw(*shape, dtype=dtype) for _ in range(3))
    state = launch_state(k, v, block=16, each=32)
    expected = reference_state(k, v)
    assert torch.allclose(state, expected, atol=1e-4 * expected.abs().max().item())
    out = launch_apply(q, expected, 1e-15, block=16)
    wanted = reference_apply(q, expected, 1e-15)
    assert out.dtype == dtype
    error = (out.float() - wanted.float()).norm() / wanted.float().norm()
    assert error <= TOLERANCE[dtype]
    both = launch_linear_attention(q, k, v, 1e-15)
    assert (both.float() - wanted.float()).norm() <= TOLERANCE[dtype] * wanted.float().norm()


def test_partial_states_are_added_up(draw) -> None:
    from fewer.kernels.triton.linear_attention import launch_linear_attention

    q, k, v = (draw(1, 600, 1, 16) for _ in range(3))
    wanted = reference_apply(q, reference_state(k, v), 1e-15)
    assert (launch_linear_attention(q, k, v, 1e-15) - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_exact_sums_are_the_same_bits_in_one_launch_and_in_several(dtype: torch.dtype, draw) -> None:
    from fewer.kernels.triton.linear_attention import launch_apply, launch_linear_attention, launch_state

    q, k, v = (draw(1, 320, 2, 16, dtype=dtype) for _ in range(3))
    whole = launch_linear_attention(q, k, v, 1e-15, exact=True)
    state = launch_state(k[:, 192:], v[:, 192:], exact=True) + launch_state(
        k[:, :192], v[:, :192], exact=True
    )
    assert state.dtype == torch.float64
    assert torch.equal(launch_apply(q, state, 1e-15), whole)
    wanted = reference_apply(q, reference_state(k, v), 1e-15)
    assert (whole.float() - wanted.float()).norm() <= TOLERANCE[dtype] * wanted.float().norm()


def test_strided_views_need_no_copy(draw) -> None:
    from fewer.kernels.triton.linear_attention import launch_state

    qkv = draw(2, 33, 3, 2, 16)
    assert torch.allclose(
        launch_state(qkv[:, :, 1], qkv[:, :, 2]), reference_state(qkv[:, :, 1], qkv[:, :, 2]), atol=1e-4
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1, 1, 32), (2, 70, 3, 32), (1, 123, 2, 16), (1, 20, 1, 8)])
@pytest.mark.parametrize("exact", [False, True])
def test_one_program_for_all_tokens_of_a_head(dtype: torch.dtype, shape: tuple, exact: bool, draw) -> None:
    from fewer.kernels.triton.linear_attention import launch_whole

    joint = draw(*shape[:2], 3, *shape[2:], dtype=dtype)
    q, k, v = joint.unbind(2)
    out = launch_whole(q, k, v, 1e-15, exact, (32, 4, 2))
    wanted = reference_apply(q, reference_state(k, v), 1e-15)
    assert out.dtype == dtype and out.shape == q.shape
    assert (out.float() - wanted.float()).norm() <= TOLERANCE[dtype] * wanted.float().norm()
    q = torch.zeros_like(q)
    assert (launch_whole(q, k, v, 1e-15, exact) == 0).all(), "a row of zero queries gives zeros"


def test_many_heads_of_few_tokens_take_one_kernel(draw, monkeypatch: pytest.MonkeyPatch) -> None:
    import fewer.kernels.triton.linear_attention as module

    q, k, v = (draw(8, 5, 8, 16, dtype=torch.bfloat16) for _ in range(3))
    wanted = reference_apply(q, reference_state(k, v), 1e-15)
    monkeypatch.setattr(module, "_partial_states", lambda *_: pytest.fail("took two"))
    found = module.launch_linear_attention(q, k, v, 1e-15)
    assert (found.float() - wanted.float()).norm() <= 1e-2 * wanted.float().norm()
