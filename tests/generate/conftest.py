"""Small models with random weights, shared by the tests of this room."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fewer.generate.transformer import SanaParams, SanaTransformer, initialise

_TINY = {
    "in_channels": 4,
    "out_channels": 4,
    "heads": 2,
    "head_dim": 8,
    "depth": 2,
    "cross_heads": 2,
    "cross_head_dim": 8,
    "caption_channels": 12,
    "sample_size": 4,
}


@pytest.fixture
def tiny() -> Callable[..., SanaTransformer]:
    """Builds a tiny transformer with fixed random weights; keywords change its shape."""

    def build(**changes: object) -> SanaTransformer:
        model = SanaTransformer(SanaParams(**(_TINY | changes)))
        return initialise(model, torch.Generator().manual_seed(0), zero_output=False)

    return build


def _tokenizer(*, adds_begin: bool):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from fewer.generate.text import INSTRUCTION

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<pad>", "<eos>", "<bos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(INSTRUCTION, trainer)
    if adds_begin:
        core.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", core.token_to_id("<bos>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )


@pytest.fixture(scope="session")
def gemma_folder(tmp_path_factory) -> Path:
    """A Gemma-2 with a tokenizer that adds the beginning token itself."""
    from transformers import Gemma2Config, Gemma2Model

    folder = tmp_path_factory.mktemp("gemma")
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=700,
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    Gemma2Model(config).save_pretrained(folder)
    _tokenizer(adds_begin=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory) -> Path:
    """A Llama (SmolLM2's layout) with a tokenizer that adds no beginning token."""
    from transformers import LlamaConfig, LlamaModel

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=700,
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    LlamaModel(config).save_pretrained(folder)
    _tokenizer(adds_begin=False).save_pretrained(folder)
    return folder


def _pipeline(folder: Path, text: Path, stages: int, sample_size: int, **changes: object) -> Path:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import AutoTokenizer, Gemma2Model

    torch.manual_seed(1)
    widths = (4,) * (stages - 2) + (8, 8)
    autoencoder = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock",) * (stages - 1) + ("EfficientViTBlock",),
        decoder_block_types=("ResBlock",) * (stages - 1) + ("EfficientViTBlock",),
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(1,) * stages,
        decoder_layers_per_block=(1,) * stages,
        encoder_qkv_multiscales=((),) * (stages - 1) + ((5,),),
        decoder_qkv_multiscales=((),) * (stages - 1) + ((5,),),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=sample_size,
        **changes,
    )
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    )
    SanaPipeline(
        tokenizer=AutoTokenizer.from_pretrained(text),
        text_encoder=Gemma2Model.from_pretrained(text),
        vae=autoencoder,
        transformer=transformer,
        scheduler=scheduler,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory, gemma_folder) -> Path:
    """A tiny SanaPipeline at 4x compression, saved by diffusers; its own size is 32 px."""
    return _pipeline(tmp_path_factory.mktemp("pipeline"), gemma_folder, 3, 8)


@pytest.fixture(scope="session")
def binned_folder(tmp_path_factory, gemma_folder) -> Path:
    """The same at 32x compression and 512 px, a size that has a table of shapes."""
    return _pipeline(tmp_path_factory.mktemp("binned"), gemma_folder, 6, 16, interpolation_scale=1.0)


@pytest.fixture
def quick_folder(pipeline_folder, tmp_path) -> Path:
    """The tiny pipeline with a few-step edition of random weights."""
    from fewer.generate import TextToImage
    from fewer.generate.lora import fresh, write_lora
    from fewer.generate.sampling.few_steps import WEIGHTS, FewSteps, few_step_levels, write_few_steps

    folder = tmp_path / "quick"
    shutil.copytree(pipeline_folder, folder)
    transformer = TextToImage.load(folder, device="cpu").transformer
    targets = ("to_q", "to_k", "conv_inverted", "proj_out", "linear", "linear_1")
    adapter = fresh(transformer, 2, torch.Generator().manual_seed(0), targets=targets)
    for low_rank in adapter.values():
        low_rank.up.normal_(generator=torch.Generator().manual_seed(1))
    edition = write_few_steps(folder, FewSteps(levels=few_step_levels(3.0), guidance=4.0))
    write_lora(edition / WEIGHTS, adapter)
    return folder
