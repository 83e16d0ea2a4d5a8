import torch

from tests.generate.conditional.conftest import tiny


@torch.no_grad()
def test_condition_matters_and_samples_stay_apart(batch: tuple) -> None:
    latents, times, labels = batch
    for shape in ("cat tokens", "cat adaln"):
        model = tiny(shape)
        before = model(latents, times, labels)
        other = labels.clone()
        other[0] = 3
        after = model(latents, times, other)
        assert before.shape == latents.shape
        assert torch.equal(after[1:], before[1:]) and not torch.allclose(after[0], before[0])


@torch.no_grad()
def test_what_a_network_draws_depends_on_place() -> None:
    """Neither linear attention nor a norm knows where a token is; positions and convolutions do."""
    model = tiny("cat tokens")
    latents = torch.zeros(1, 2, 6, 6)
    result = model(latents, torch.tensor([5.0]), torch.tensor([0]))
    assert result.std((2, 3)).min() > 1e-3
