"""The engine's DC-AE blocks on a band: the same kernels, border rows and attention states exchanged."""

from torch import Tensor

from fewer.generate.engine.autoencoder import FusedEfficientViTBlock, Rows, State
from fewer.generate.engine.shell import shell
from fewer.parallel.convolution import depthwise_band
from fewer.parallel.session import Session


class BandEfficientViTBlock(FusedEfficientViTBlock):
    """Attention over all bands, then the gated convolution with the neighbours' rows."""

    session: Session
    layer: str

    @classmethod
    def of_band(
        cls, original: FusedEfficientViTBlock, session: Session, layer: str
    ) -> "BandEfficientViTBlock":
        """Shares the original's tensors; its children are replaced by the caller."""
        block = shell(cls, original)
        block.session, block.layer = session, layer
        return block

    def whole_state(self, state: State, part: int) -> State:
        return self.session.start_state(f"{self.layer}.attn.{part}", state, ones=-2).wait()

    def mix(self, rows: Rows) -> Tensor:
        depth = self.conv_out.conv_depth
        assert depth.bias is not None
        layer = f"{self.layer}.conv_out"
        return depthwise_band(self.session, layer, rows, self.widen, depth.weight[:, 0], depth.bias)
