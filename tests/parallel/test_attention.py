import torch

from fewer.generate.transformer.attention import LinearAttention
from fewer.parallel.attention import ParallelLinearAttention, gathered_keys_values
from fewer.parallel.bands import cut
from fewer.parallel.group import Group
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.session import Session
from fewer.parallel.simulated import run_simulated


def test_bands_of_linear_attention_are_the_whole_with_and_without_norms() -> None:
    for qk_norm in (False, True):
        torch.manual_seed(0)
        attention = LinearAttention(16, 2, 8, qk_norm=qk_norm)
        tokens = torch.randn(2, 11, 16)

        def rank_main(group: Group, attention=attention, tokens=tokens) -> torch.Tensor:
            session = Session(group, ParallelPlan(devices=3, mode="sync"))
            bands = cut(11, 3)
            session.begin_step(1.0, bands, 2)
            own = tokens.narrow(1, bands.start(group.rank), bands.lengths[group.rank])
            return ParallelLinearAttention(attention, session, "a")(own)

        assert torch.allclose(torch.cat(run_simulated(3, rank_main), 1), attention(tokens), atol=1e-6)


def test_keys_and_values_arrive_in_rank_order_in_one_exchange() -> None:
    key, value = torch.randn(1, 5, 3), torch.randn(1, 5, 4)[..., :3]

    def rank_main(group: Group) -> bool:
        session = Session(group, ParallelPlan(devices=2, mode="sync"))
        session.begin_step(1.0, cut(5, 2), 1)
        part = slice(0, 3) if group.rank == 0 else slice(3, 5)
        keys, values = gathered_keys_values(session, "a", key[:, part], value[:, part], [3, 2])
        return torch.equal(keys, key) and torch.equal(values, value) and group.traffic.collectives == 1

    assert run_simulated(2, rank_main) == [True, True]
