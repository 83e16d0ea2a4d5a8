"""ONNX: an encoder (history -> interest vector) beside the item vectors, for serving without PyTorch.

Scores are one matrix product away, so the item table is a file of its own: it can be put into any index, and
new items need no new encoder.
"""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fewer.core.errors import FileError
from fewer.core.files import write_json
from fewer.core.tensors import write_tensors
from fewer.recommend.recommender import Recommender

OPSET = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written, and how closely onnxruntime repeats the network."""

    encoder: Path
    vectors: Path
    items: Path
    largest_difference: float
    """Of any interest vector's channel, on random histories."""


def export_onnx(recommender: Recommender, folder: Path | str, *, check: bool = True) -> Exported:
    """Writes `encoder.onnx` (histories: int64 (batch, m), 0 on the left -> interest: float (batch, dim)),
    `item_vectors.safetensors` and `items.json`. Raises `FileError` when onnx is not installed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = folder / "encoder.onnx"
    network = recommender.network.to("cpu").eval()
    histories = _histories(recommender, 3)
    _export(network, histories, encoder)
    write_tensors(folder / "item_vectors.safetensors", {"vectors": recommender.vectors().cpu().contiguous()})
    # a superset of the model's own items.json, so that a model may be exported into its own folder
    write_json(folder / "items.json", {**recommender.names(), "length": recommender.sizes.length})
    difference = float("nan")
    if check:
        test = _histories(recommender, 33)
        with torch.no_grad():
            expected = network(test).numpy()
        difference = float(np.abs(run_encoder(encoder, test.numpy()) - expected).max())
    return Exported(
        encoder=encoder,
        vectors=folder / "item_vectors.safetensors",
        items=folder / "items.json",
        largest_difference=difference,
    )


def run_encoder(encoder: Path, histories: np.ndarray) -> np.ndarray:
    """Interest vectors through onnxruntime on the CPU."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise FileError(
            "onnxruntime is missing; install it with: pip install 'fewer[recommend]'", missing=True
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(encoder), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"histories": histories.astype(np.int64)})[0])


def _export(network: torch.nn.Module, histories: torch.Tensor, path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise FileError(
            f"the export needs {error.name!r}; install it with: pip install 'fewer[recommend]'", missing=True
        ) from error
    chatter = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in chatter]
    for log in chatter:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns about its own internals
            torch.onnx.export(
                network,
                (histories,),
                str(path),
                input_names=["histories"],
                output_names=["interest"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1 << 20)},),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        for log, level in zip(chatter, levels, strict=True):
            log.setLevel(level)


def _histories(recommender: Recommender, count: int) -> torch.Tensor:
    """Random histories of every length, left-padded."""
    generator = torch.Generator().manual_seed(0)
    length = recommender.sizes.length
    histories = torch.randint(1, recommender.item_count + 1, (count, length), generator=generator)
    lengths = torch.randint(1, length + 1, (count, 1), generator=generator)
    return histories * (torch.arange(length) >= length - lengths)
