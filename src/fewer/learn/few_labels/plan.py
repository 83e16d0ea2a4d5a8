"""Every setting of a semi-supervised run; stored with its result, so that the run can be repeated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fewer.core.device import DeviceName, DtypeName
from fewer.learn.networks import NetworkName

MethodName = Literal[
    "instant",
    "fixmatch",
    "flexmatch",
    "freematch",
    "softmatch",
    "adamatch",
    "uda",
    "mixmatch",
    "pseudo-label",
    "labels-only",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SemiSupervisedPlan:
    """Defaults suit a CPU; the published long runs use wrn-28-2, 2^20 steps, batch 64, ratio 7, ema 0.999."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore

    method: MethodName = "instant"
    """The threshold; `labels-only` ignores the unlabelled images."""
    network: NetworkName = "small-cnn"
    """The classifier."""
    network_folder: str | None = None
    """Local folder of a pretrained `vit`."""
    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """Optimizer steps."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 32
    """Labelled images a step."""
    ratio: Annotated[int, Field(ge=1, le=64)] = 5
    """Unlabelled images for each labelled one (mu)."""
    rate: Annotated[float, Field(gt=0, le=10)] = 0.03
    """Learning rate of SGD with Nesterov momentum 0.9."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 5e-4
    """Not applied to biases and normalisation."""
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay of the weights' moving average, which is the result; default min(0.999, 1 - 10 / steps)."""
    running: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Momentum of the running means of alignment and thresholds; default as `ema`."""
    flip: bool = False
    """Weak augmentation flips left and right (not for digits)."""
    strong: Literal["auto", "colour", "grey"] = "auto"
    """RandAugment's operations: all 14, or those that suit grey pictures; auto goes by the channels."""
    unlabelled_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Factor on the unlabelled loss. The released code of InstanT in effect uses 2."""
    cutoff: Annotated[float, Field(gt=0, le=1)] | None = None
    """Threshold or factor of the base threshold; default as each method's paper (InstanT 0.9)."""
    warm_up: Annotated[float, Field(ge=0, le=1)] = 0.1
    """InstanT: share of the run with the base threshold alone."""
    estimation: Literal["class", "instance", "labelled-row", "counted", "recounted"] = "recounted"
    """InstanT: one transition matrix, one for each image, one for each image taught by the labelled ones, or
    one counted on the labelled batches along the run or, again and again, with the network as it is."""
    recount: Annotated[int, Field(ge=1)] = 10
    """InstanT, `recounted`: steps between two counts."""
    transition_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    """InstanT: weight of the identity in T at the start."""
    transition_body: Literal["cnn", "resnet"] = "cnn"
    """InstanT: network of the instance estimator."""
    threshold_temperature: Annotated[float, Field(gt=0, le=100)] = 0.5
    """InstanT: of the flattened posterior."""
    posterior: Literal["flattened", "plain", "views"] = "views"
    """InstanT: `plain` is the form that the guarantee needs; `views` (ours) is its estimate from other weak
    views of the picture, which tells right pseudo-labels better."""
    views: Annotated[int, Field(ge=1, le=8)] = 2
    """InstanT, `views`: how many; each is one more forward pass of the unlabelled pictures."""
    compare: Literal["posterior", "noisy"] = "posterior"
    """InstanT: `noisy` is the form that the guarantee needs."""
    seed: Annotated[int, Field(ge=0, le=2**62)] = 0
    """Decides weights, batches and augmentation."""
    device: DeviceName = "auto"
    """Where to compute."""
    dtype: DtypeName = "auto"
    """bf16 runs under autocast; auto is fp32 on a CPU."""

    def other_views(self) -> int:
        """Further weak views that InstanT looks at."""
        return self.views if self.method == "instant" and self.posterior == "views" else 0

    def ema_decay(self) -> float:
        """Short runs need a shorter memory than 0.999, or their first weights never fade."""
        return min(0.999, max(0.0, 1 - 10 / self.steps)) if self.ema is None else self.ema

    def running_momentum(self) -> float:
        return self.ema_decay() if self.running is None else self.running
