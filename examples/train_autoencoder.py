"""Train a tiny autoencoder on drawn pictures in the three phases, and look at what each one moved."""

import torch

from fewer.core.device import isolated_randomness
from fewer.generate import DCAutoencoder, DCAutoencoderConfig
from fewer.generate.autoencoder.phases import PhasePlan
from fewer.generate.autoencoder.training import TrainingOptions, measure_latents, train_autoencoder


def draw(count: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """Smooth coloured noise; for pictures use `PictureFolder(folder).crops` of autoencoder.crops."""
    noise = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(noise, size=(side, side), mode="bilinear")


def main() -> None:
    config = DCAutoencoderConfig(
        latent_channels=8,
        encoder_block_out_channels=(8, 16, 32),
        decoder_block_out_channels=(8, 16, 32),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
    )
    with isolated_randomness(0):
        model = DCAutoencoder(config)
    plans = [
        PhasePlan(phase=1, steps=40, crop=16, batch=8, rate=2e-3),
        PhasePlan(phase=2, steps=5, crop=32, batch=2, rate=5e-4, weight_decay=0.001),
        PhasePlan(phase=3, steps=5, crop=32, batch=4, rate=5e-4, betas=(0.5, 0.9)),
    ]
    for plan in plans:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        options = TrainingOptions(ema_decay=None, critic_width=8)
        result = train_autoencoder(model, draw, [plan], options)[plan.phase]
        moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
        print(
            f"phase {plan.phase}: loss {result.losses[-1]:.3f}, {len(moved)} of {len(before)} tensors moved"
        )
    measure_latents(model, draw, side=16, count=64)
    latents = model.encode(draw(64, 16, torch.Generator().manual_seed(5)))
    print("spread of the scaled latents per channel:", latents.std((0, 2, 3)).tolist())


if __name__ == "__main__":
    main()
