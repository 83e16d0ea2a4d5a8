"""DC-AE on several devices, exactly: bands of latents in, bands of pixels out, joined at the end.

Convolutions exchange border rows, linear attention adds up its state, everything else is local; a band
stays a band through all resolutions (distrifusion §2.4).
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.core.errors import ConfigError
from fewer.core.modules import replace_modules
from fewer.generate.autoencoder.blocks import LinearAttention
from fewer.generate.autoencoder.capacity import peak_bytes
from fewer.generate.autoencoder.dc_ae import (
    DCAutoencoder,
    Decoder,
    Encoder,
    check_input,
    check_size,
    pad_to_multiple,
)
from fewer.generate.engine.autoencoder import FusedDecoder
from fewer.parallel.agreement import Agreement, picture_facts
from fewer.parallel.attach import structural_copy
from fewer.parallel.attention import ParallelAutoencoderAttention
from fewer.parallel.bands import cut
from fewer.parallel.convolution import ParallelConv2d
from fewer.parallel.fused_autoencoder import BandBlock, BandDecoder, band_of_block
from fewer.parallel.group import Group
from fewer.parallel.memory import require_on_every_rank
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.session import Session


class ParallelAutoencoder(DCAutoencoder):
    """A `DCAutoencoder` to its callers: whole latents and whole images on every rank."""

    session: Session
    plain: tuple[DCAutoencoder]
    """The original, whose blocks tell how much memory they take; in a tuple, so that it is no submodule."""
    agreement: Agreement
    fitting: set[tuple[int, ...]]
    """Shapes of bands that were found to fit."""

    @classmethod
    def around(cls, original: DCAutoencoder, plan: ParallelPlan, group: Group) -> "ParallelAutoencoder":
        """Shares the original's tensors, under the same names. Always exact: there is no step before."""
        if any(isinstance(module, nn.BatchNorm2d) for module in original.modules()) and original.training:
            raise ConfigError(
                "a DC-AE with batch norm is spread over devices in eval mode only; call .eval()"
            )
        model = structural_copy(original)
        model.__class__ = cls
        assert isinstance(model, ParallelAutoencoder)
        model.session = session = Session(
            group, ParallelPlan(devices=plan.devices, mode="sync", border=plan.border)
        )

        def build(name: str, module: nn.Module) -> nn.Module | None:
            block = band_of_block(name, module, session, build)
            if block is not None:
                return block
            if isinstance(module, LinearAttention):
                replace_modules(module, build)  # its multi-scale convolutions look beyond the band too
                return ParallelAutoencoderAttention(module, session, name)
            if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
                return ParallelConv2d(module, session, name)
            return None

        model.plain, model.fitting, model.agreement = (original,), set(), Agreement(group)
        if group.size == 1:  # one device keeps its own layers, and with them its bits, tiles and graphs
            return model
        replace_modules(model, build)
        if isinstance(model.decoder, FusedDecoder):
            model.decoder.__class__ = BandDecoder
            model.decoder.become_band(session)  # pyright: ignore
        return model

    @torch.no_grad()
    def encode(
        self,
        image: Float[Tensor, "batch channels height width"],
        *,
        tile: int | Literal["auto"] | None = None,
        pad: bool = False,
        check_finite: bool = False,
    ) -> Float[Tensor, "batch latent_channels lat_h lat_w"]:
        """As `DCAutoencoder.encode`; on several devices `tile` is ignored, since the bands are the tiles."""
        if self.session.group.size == 1 or len(image) == 0:
            return super().encode(image, tile=tile, pad=pad, check_finite=check_finite)
        check_input("image", image, {self.config.in_channels}, check_finite)
        ratio = self.config.spatial_compression_ratio
        image = pad_to_multiple(image, ratio) if pad else image
        check_size(image, ratio)
        own, lengths = self._band(image, ratio)
        self._require(self.plain[0].encoder, (*image.shape[:2], max(lengths), image.shape[3]), image)
        raw = self.encoder(own)
        whole = self.session.group.start_gather(raw, [length // ratio for length in lengths], 2).wait()
        return self.scale(whole)

    @torch.no_grad()
    def decode(
        self,
        latents: Float[Tensor, "batch latent_channels lat_h lat_w"],
        *,
        tile: int | Literal["auto"] | None = None,
        size: tuple[int, int] | None = None,
        check_finite: bool = False,
    ) -> Float[Tensor, "batch channels height width"]:
        """As `DCAutoencoder.decode`; on several devices `tile` is ignored, since the bands are the tiles."""
        if self.session.group.size == 1 or len(latents) == 0:
            return super().decode(latents, tile=tile, size=size, check_finite=check_finite)
        channels = {self.config.latent_channels, *self.config.latent_prefixes}
        check_input("latents", latents, channels, check_finite)
        ratio = self.config.spatial_compression_ratio
        raw = self.unscale(latents)
        if raw.shape[1] < self.config.latent_channels:
            missing = self.config.latent_channels - raw.shape[1]
            raw = torch.cat([raw, raw.new_zeros(raw.shape[0], missing, *raw.shape[2:])], dim=1)
        own, lengths = self._band(raw, 1)
        pixels = (raw.shape[0], self.config.in_channels, max(lengths) * ratio, raw.shape[3] * ratio)
        self._require(self.plain[0].decoder, pixels, raw)
        own_pixels = self.decoder(own)
        image = self.session.group.start_gather(own_pixels, [length * ratio for length in lengths], 2).wait()
        return image if size is None else image[..., : size[0], : size[1]]

    def _require(self, network: Encoder | Decoder, pixels: tuple[int, ...], like: Tensor) -> None:
        """Once a size: raises `CapacityError` on every rank where the largest band does not fit."""
        key = (*pixels, int(network is self.plain[0].decoder))
        if key not in self.fitting:
            needed = peak_bytes(network, pixels, like.element_size(), None)
            what = f"for a band of {pixels[3]} x {pixels[2]} pixels"
            require_on_every_rank(self.session.group, needed, like.device, what)
            self.fitting.add(key)

    def _band(self, whole: Tensor, unit: int) -> tuple[Tensor, tuple[int, ...]]:
        session = self.session
        self.agreement.check(picture_facts(whole))
        bands = cut(whole.shape[2], session.group.size, unit, self._reach())
        session.begin_step(0.0, bands, 2)
        return whole.narrow(
            2, bands.start(session.group.rank), bands.lengths[session.group.rank]
        ), bands.lengths

    def _reach(self) -> int:
        """Rows of latents that the widest convolution at the deepest stage looks into."""
        scales = [*self.config.encoder_qkv_multiscales[-1], *self.config.decoder_qkv_multiscales[-1]]
        deepest = [self.encoder.down_blocks[-1], self.decoder.up_blocks[-1]]
        blocks = [
            block.reach for stage in deepest for block in stage.children() if isinstance(block, BandBlock)
        ]
        return max([*(scale // 2 for scale in scales), *blocks], default=1)
