"""The PatchGAN of phase 3: a small critic that judges patches, and the hinge losses of both sides."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Image = Float[Tensor, "batch channels height width"]
# Three halvings, then two convolutions that each need one pixel more than they leave.
SMALLEST_JUDGED = 24

Judgement = Float[Tensor, "batch one rows columns"]


class PatchDiscriminator(nn.Module):
    """Three strided 4x4 convolutions and two more, LeakyReLU 0.2 (Isola et al. 2017, spec §2.4).

    Norms are over groups of one sample: batch statistics would tie samples, and ranks, to each other.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        modules: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        channels = width
        for layer in range(1, layers + 1):
            out = min(width * 2**layer, width * 8)
            stride = 2 if layer < layers else 1
            modules += [
                nn.Conv2d(channels, out, 4, stride, 1, bias=False),
                nn.GroupNorm(min(8, out), out),
                nn.LeakyReLU(0.2),
            ]
            channels = out
        modules.append(nn.Conv2d(channels, 1, 4, 1, 1))
        self.layers = nn.Sequential(*modules)

    def forward(self, image: Image) -> Judgement:
        return self.layers(image)


def critic_loss(real: Judgement, fake: Judgement) -> Float[Tensor, ""]:
    """Hinge: real patches above 1, reconstructed ones below -1."""
    return 0.5 * (functional.relu(1 - real.float()).mean() + functional.relu(1 + fake.float()).mean())


def generator_loss(fake: Judgement) -> Float[Tensor, ""]:
    """The autoencoder's side: reconstructed patches judged as high as possible."""
    return -fake.float().mean()
