import torch

from fewer.recommend.baselines.mlp_mixer import mlp4rec, mlp_mixer
from fewer.recommend.data.features import ItemFeatures


def test_widths_are_four_times_the_input_and_mlp4rec_shares_its_layers() -> None:
    mixer, shared = mlp_mixer(9, 6, 8, 3, 0.0), mlp4rec(9, 6, 8, 3, 0.0, None)
    assert mixer.stack.layers[0].sequence.widen.weight.shape == (24, 6)
    assert mixer.stack.layers[0].channel.widen.weight.shape == (32, 8)
    assert (len(mixer.stack.layers), len(shared.stack.layers)) == (3, 1)


def test_mlp4rec_hears_the_features() -> None:
    features = ItemFeatures.build(["a", "b", "c"], {"kind": {"a": ["x"], "b": ["y"], "c": ["x"]}})
    network = mlp4rec(3, 4, 8, 2, 0.0, features).eval()
    histories = torch.tensor([[0, 1, 2], [1, 2, 3]])
    before = network(histories)
    with torch.no_grad():
        network.features.words[0].weight[1] += torch.randn(8)
    assert before.shape == (2, 8) and (before - network(histories)).abs().max() > 1e-6
