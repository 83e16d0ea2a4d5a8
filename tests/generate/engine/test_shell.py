import torch
from torch import nn

from fewer.generate.engine.shell import shell


class Loud(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * super().forward(x)


def test_a_shell_shares_tensors_but_not_the_tree() -> None:
    plain = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    loud, x = shell(Loud, plain), torch.randn(3, 2)
    assert type(loud) is Loud and type(plain) is nn.Sequential
    assert torch.equal(loud(x), 10 * plain(x))
    loud[1] = nn.Identity()
    assert isinstance(plain[1], nn.ReLU)
    assert next(iter(loud.parameters())) is next(iter(plain.parameters()))
