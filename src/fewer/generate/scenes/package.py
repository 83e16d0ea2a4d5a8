"""Writes a model folder in diffusers' SanaPipeline layout; what that cannot say goes into `fewer.json`."""

from dataclasses import asdict
from pathlib import Path

from fewer.core.files import write_json
from fewer.core.tensors import write_tensors
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.autoencoder.formats import config_to_mapping
from fewer.generate.compact import compact
from fewer.generate.model_folder import ModelSettings
from fewer.generate.transformer.formats import write_params
from fewer.generate.transformer.sana import SanaTransformer
from fewer.generate.transformer.shards import WEIGHTS

_TEXT_ENCODER = "smollm2-135m"


def write_model(
    folder: Path, transformer: SanaTransformer, autoencoder: DCAutoencoder, settings: ModelSettings
) -> dict[str, int]:
    """Saves both networks with their configurations, a byte a weight; returns the bytes of each part."""
    for part, config, network in (
        ("transformer", write_params(transformer.params), transformer),
        ("vae", config_to_mapping(autoencoder.config), autoencoder),
    ):
        write_json(folder / part / "config.json", config)
        write_tensors(
            folder / part / f"{WEIGHTS}.safetensors", compact(network.state_dict()), {"format": "pt"}
        )
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
