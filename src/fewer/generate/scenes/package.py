"""Writes a model folder in diffusers' SanaPipeline layout; what that cannot say goes into `fewer.json`."""

from dataclasses import asdict
from pathlib import Path

import torch

from fewer.core.files import write_json
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.model_folder import ModelSettings
from fewer.generate.transformer.sana import SanaTransformer

_TEXT_ENCODER = "smollm2-135m"


def write_model(
    folder: Path, transformer: SanaTransformer, autoencoder: DCAutoencoder, settings: ModelSettings
) -> dict[str, int]:
    """Saves both networks in bf16 with their configurations; returns the bytes of each part."""
    _in_bf16(transformer).save(folder / "transformer")
    half = DCAutoencoder(autoencoder.config)
    half.load_state_dict(autoencoder.state_dict())
    half.to(torch.bfloat16).save(folder / "vae")
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "DPMSolverMultistepScheduler",
            "flow_shift": settings.shift,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
        },
    )
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "SanaPipeline",
            "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
            "text_encoder": ["fewer", _TEXT_ENCODER],
            "tokenizer": ["fewer", _TEXT_ENCODER],
            "transformer": ["diffusers", "SanaTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderDC"],
        },
    )
    write_json(folder / "fewer.json", asdict(settings))
    return {
        part: sum(file.stat().st_size for file in (folder / part).rglob("*.safetensors"))
        for part in ("transformer", "vae")
    }


def _in_bf16(transformer: SanaTransformer) -> SanaTransformer:
    half = SanaTransformer(transformer.params)
    half.load_state_dict(transformer.state_dict())
    return half.to(torch.bfloat16)
