import torch

from fewer.generate.conditional.condition import ConditionPlan
from fewer.generate.conditional.for_sana import condition_sana
from tests.generate.conditional.conftest import randomise, tiny_sana


def test_masked_text_and_other_samples_do_not_matter() -> None:
    model = condition_sana(tiny_sana(), ConditionPlan(rank=2))
    randomise(model.can)
    latents, times, text = torch.randn(2, 3, 4, 4), torch.tensor([10.0, 900.0]), torch.randn(2, 5, 6)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        before = model(latents, times, text, mask)
        other = text.clone()
        other[0, 3] = 100.0
        assert torch.equal(model(latents, times, other, mask), before)
        merged = model.merge(model.embed(times[:1], text[:1], mask[:1]))
        assert torch.allclose(merged(latents[:1], times[:1], text[:1], mask[:1]), before[:1], atol=1e-5)
        assert not torch.allclose(model(latents, times, text[[1, 0]], mask)[0], before[0], atol=1e-3)
