import torch
from torch import nn

from fewer.generate.engine.shell import shell, shell_tree


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


def test_in_a_tree_of_shells_a_layer_replaced_at_any_depth_stays_where_it_was_put() -> None:
    shared = nn.Linear(2, 2)
    plain = nn.Sequential(nn.Sequential(shared, nn.ReLU()), shared)
    loud, x = shell_tree(Loud, plain), torch.randn(3, 2)
    expected = plain(x)
    assert torch.equal(loud(x), 10 * expected)
    assert loud[0][0] is loud[1] and loud[1].weight is shared.weight
    loud[0][1] = nn.Identity()
    loud[1].register_forward_hook(lambda *_: torch.zeros(3, 2))
    assert torch.equal(plain(x), expected) and not torch.equal(loud(x), 10 * expected)
