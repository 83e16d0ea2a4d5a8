import torch

from fewer.learn.domains.layers import gradient_spread, layer_reports


def test_the_spread_is_zero_where_domains_agree(toy) -> None:
    network, batch = toy.network(), toy.batch(0)
    half = batch.images[:8]
    same = type(batch)(torch.cat([half, half]), torch.cat([batch.labels[:8]] * 2), (8, 8))
    assert gradient_spread(network, ["hidden.weight"], [same])["hidden.weight"].max() < 1e-7
    assert gradient_spread(network, ["hidden.weight"], [batch])["hidden.weight"].max() > 1e-3


def test_reports_count_and_compare(toy) -> None:
    network, batch = toy.network(), toy.batch(1)
    spread = gradient_spread(network, ["hidden.weight"], [batch])["hidden.weight"]
    mask = spread < spread.median()
    first = torch.zeros_like(mask)
    (report,) = layer_reports(
        network, ["hidden.weight"], {"hidden.weight": mask}, {"hidden.weight": first}, [batch]
    )
    assert (report.weights, report.kept) == (12, int(mask.sum()))
    assert abs(report.changed - float(mask.float().mean())) < 1e-6
    assert report.spread_dropped > 1 > report.spread_kept
    assert layer_reports(network, ["hidden.weight"], {}, {}, [batch]) == []
