"""diffusers' folders as users have them: whole, damaged, of another model, pickled, as pipelines."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewer.core.errors import ConfigError, FileError
from fewer.core.progress import SilentProgress
from fewer.quantize import load_model
from fewer.quantize.command import QuantizeRequest, quantize_command
from fewer.quantize.models import open_model

WEIGHTS = "diffusion_pytorch_model.safetensors"
CPU = torch.device("cpu")


@pytest.fixture
def pixart(tmp_path: Path) -> Path:
    from diffusers import PixArtTransformer2DModel

    folder = tmp_path / "pixart"
    PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=32, in_channels=4, out_channels=8, num_layers=1,
        cross_attention_dim=64, caption_channels=32, sample_size=8,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def _lose(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["transformer_blocks.0.attn1.to_q.weight"]
    save_file(tensors, folder / WEIGHTS)


def _widen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_layers": 20, "in_channels": 5}))


def _nonsense(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": -3}))


def _pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")


def _shard(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"proj_out.weight": "part-2.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def _escape(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"proj_out.weight": "../other.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_cut, WEIGHTS),
        (_lose, r"lack 1 tensors .*attn1\.to_q"),
        (_widen, "lack|by its config"),
        (_nonsense, "describes no PixArt"),
        (_pickle, "pickle"),
        (_shard, "part-2"),
        (_escape, "other"),
    ],
)
def test_a_damaged_folder_is_a_named_error_and_leaves_no_output(
    pixart: Path, tmp_path: Path, damage: object, text: str
) -> None:
    damage(pixart)  # type: ignore[operator]
    with pytest.raises(FileError, match=text):
        quantize_command(
            QuantizeRequest(model=str(pixart), output=tmp_path / "out", device="cpu"), SilentProgress()
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pixart"]


def _sdxl(folder: Path) -> None:
    """A tiny pipeline of SDXL's kind whose tokenizer knows letters."""
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    words_folder = folder / "words"
    words_folder.mkdir(parents=True)
    (words_folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (words_folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(words_folder, model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=37, num_hidden_layers=1,
        num_attention_heads=4, projection_dim=32, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=8,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=1, projection_class_embeddings_input_dim=80,
    )  # fmt: skip
    decoder = AutoencoderKL(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=8,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=16,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=decoder, text_encoder=CLIPTextModel(text), text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet, scheduler=EulerDiscreteScheduler(),
    ).save_pretrained(folder / "sdxl")  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_a_pipeline_is_calibrated_on_prompts_and_draws_with_its_quantized_denoiser(tmp_path: Path) -> None:
    torch.manual_seed(0)
    _sdxl(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red ball\na blue car\n")
    request = QuantizeRequest(
        model=str(tmp_path / "sdxl"), output=tmp_path / "out", rank=16, preset="fast", report=True,
        calibration=tmp_path / "prompts.txt", device="cpu", dtype="fp32",
    )  # fmt: skip
    result = quantize_command(request, SilentProgress())
    assert result["layers_quantized"] >= 16 and 0 < result["mean_error"] < 0.2  # type: ignore[operator]
    assert (tmp_path / "out" / "report.html").read_text().count("<figure>") == 4
    opened = open_model(str(tmp_path / "sdxl"), torch.float32, CPU)
    first, again = (opened.draw("a red ball", 5) for _ in range(2))
    assert first.tobytes() == again.tobytes()  # type: ignore[attr-defined]
    pipeline = opened.pipeline._pipeline()  # type: ignore[union-attr]
    pipeline.unet = load_model(tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = pipeline("a red ball", num_inference_steps=2, generator=torch.Generator().manual_seed(5))
    assert drawn.images[0].size == first.size  # type: ignore[attr-defined]


def test_a_pipeline_of_unknown_libraries_or_without_a_denoiser_is_refused(
    pixart: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pipe"
    folder.mkdir()
    index = {"_class_name": "PixArtAlphaPipeline", "tokenizer": ["antigravity", "Tokenizer"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(FileError, match="no folder transformer or unet"):
        open_model(str(folder), torch.float32, CPU)
    pixart.rename(folder / "transformer")
    opened = open_model(str(folder), torch.float32, CPU)
    with pytest.raises(ConfigError, match="antigravity"):
        opened.draw("a red ball", 0)
    (folder / "model_index.json").unlink()
    assert type(open_model(str(folder), torch.float32, CPU).module).__name__ == "PixArtTransformer2DModel"
