import torch

from fewer.recommend.baselines.fmlp_rec import FilterLayer, FilterShape, FMLPRec


def test_a_filter_is_a_circular_convolution() -> None:
    torch.manual_seed(0)
    layer = FilterLayer(FilterShape(items=5, length=7, dim=3, hidden=4, dropout=0.0)).eval()
    rows = torch.randn(2, 7, 3)
    kernel = torch.fft.irfft(torch.view_as_complex(layer.filter), n=7, dim=0)
    wanted = torch.zeros_like(rows)
    for place in range(7):
        for lag in range(7):
            wanted[:, place] += kernel[lag] * rows[:, (place - lag) % 7]
    spectrum = torch.fft.rfft(rows, dim=1, norm="ortho") * torch.view_as_complex(layer.filter)
    torch.testing.assert_close(
        torch.fft.irfft(spectrum, n=7, dim=1, norm="ortho"), wanted, atol=1e-5, rtol=1e-4
    )
    normed = layer.filter_norm(rows + wanted)
    after = layer.feed_norm(normed + layer.narrow(torch.nn.functional.gelu(layer.widen(normed))))
    torch.testing.assert_close(layer(rows), after, atol=1e-5, rtol=1e-4)


def test_any_history_length_is_brought_to_the_filter_s_own() -> None:
    network = FMLPRec(FilterShape(items=9, length=6, dim=4)).eval()
    short = torch.tensor([[1, 2]])
    torch.testing.assert_close(network(short), network(torch.tensor([[0, 0, 0, 0, 1, 2]])))
    assert network(torch.ones(3, 11, dtype=torch.long)).shape == (3, 4)
