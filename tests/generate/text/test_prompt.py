"""Layout, masks and hidden states against diffusers' pipeline with the same language model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import SanaPipeline
from transformers import AutoTokenizer

from fewer.core.errors import ConfigError, FileError
from fewer.generate.text import INSTRUCTION, PromptEncoder, TextEmbedding

PROMPTS = ["A Cat  ", "", "a very long prompt about colours and shapes " * 20]


def diffusers_embedding(
    encoder: PromptEncoder, folder: Path, prompts: list[str], instruction: list[str] | None
):
    """The embedding code of diffusers' pipeline, run on a bare object that holds only what it reads."""
    pipe = SanaPipeline.__new__(SanaPipeline)
    object.__setattr__(pipe, "tokenizer", AutoTokenizer.from_pretrained(folder, local_files_only=True))
    object.__setattr__(pipe, "text_encoder", encoder.model)
    with torch.no_grad():
        return pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=True,
            negative_prompt="Blurred",
            device=torch.device("cpu"),
            max_sequence_length=encoder.length,
            complex_human_instruction=instruction,
        )


@pytest.mark.parametrize("length", [8, 40])
@pytest.mark.parametrize("instruction", [INSTRUCTION, None])
def test_equals_diffusers(gemma_folder, length, instruction):
    encoder = PromptEncoder.load(gemma_folder, length=length, instruction=instruction)
    expected = diffusers_embedding(encoder, gemma_folder, PROMPTS, list(instruction) if instruction else None)
    positive = encoder.encode(PROMPTS)
    negative = encoder.encode(["Blurred"] * 3, instruct=False)
    for ours, states, mask in ((positive, *expected[:2]), (negative, *expected[2:])):
        assert ours.tokens.shape == states.shape == (3, length, 12)
        assert torch.equal(ours.mask, mask.bool())
        assert (ours.tokens - states)[ours.mask].abs().max() <= 2e-6
        assert not ours.tokens[~ours.mask].any()


def test_positions_kept_are_the_first_and_the_last(gemma_folder):
    encoder = PromptEncoder.load(gemma_folder, length=10)
    ids, mask = encoder.layout(["a cat", "x" * 500])
    count = len(encoder.tokenizer.encode("\n".join(INSTRUCTION)))
    assert ids.shape == (2, count + 10 - 2)
    assert ids[0, 0] == encoder.tokenizer.bos_token_id
    assert encoder.encode(["x" * 500]).mask.all(), "a long prompt is cut to what fits"
    short = encoder.encode(["a cat"]).mask[0]
    assert short[:2].all(), "the beginning token and the instruction's last token"
    assert short.sum() == 2 + mask[0].sum() - count


def test_a_beginning_token_is_added_where_the_tokenizer_adds_none(llama_folder):
    encoder = PromptEncoder.load(llama_folder, length=16, instruction=None)
    assert encoder.tokenizer.encode("a cat")[0] != encoder.tokenizer.bos_token_id
    ids, mask = encoder.layout(["a cat", ""])
    assert ids[:, 0].tolist() == [2, 2]
    assert mask[1].tolist() == [1] + [0] * 15
    assert ids[1, 1:].unique().tolist() == [encoder.tokenizer.pad_token_id]


def test_a_prompt_does_not_depend_on_its_neighbours(llama_folder):
    encoder = PromptEncoder.load(llama_folder, length=24)
    together = encoder.encode(PROMPTS)
    for index, prompt in enumerate(PROMPTS):
        alone = encoder.encode([prompt])
        assert torch.equal(alone.mask[0], together.mask[index])
        torch.testing.assert_close(alone.tokens[0], together.tokens[index], rtol=0, atol=1e-5)


def test_fewer_layers_is_the_front_of_the_model(llama_folder):
    from transformers import LlamaModel

    whole = LlamaModel.from_pretrained(llama_folder)
    cut = PromptEncoder.load(llama_folder, length=8, layers=2)
    assert len(cut.model.layers) == 2 and len(whole.layers) == 3
    ids = torch.tensor([[2, 5, 9]])
    with torch.no_grad():
        inner = whole(ids, output_hidden_states=True).hidden_states[2]
        torch.testing.assert_close(cut.model(ids)[0], whole.norm(inner))
    with pytest.raises(ConfigError, match="text_layers was 4"):
        PromptEncoder.load(llama_folder, layers=4)


def test_other_models_keep_their_first_layers_too(gemma_folder):
    assert len(PromptEncoder.load(gemma_folder, length=8, layers=2).model.layers) == 2
    with pytest.raises(ConfigError, match="text_layers was 4"):
        PromptEncoder.load(gemma_folder, layers=4)


def test_a_plain_llama_is_read_without_transformers(llama_folder):
    code = (
        "import sys; from fewer.generate.text import PromptEncoder\n"
        f"PromptEncoder.load({str(llama_folder)!r}, length=8).encode(['a cat'])\n"
        "sys.exit(any(name in sys.modules for name in ('transformers', 'torch._dynamo')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_half_precision_is_bfloat(llama_folder):
    encoder = PromptEncoder.load(llama_folder, dtype=torch.float16, length=8)
    assert encoder.encode(["a"]).tokens.dtype == torch.bfloat16
    assert encoder.channels == 12


def test_wrong_input_is_named(llama_folder, tmp_path):
    encoder = PromptEncoder.load(llama_folder, length=8)
    with pytest.raises(ConfigError, match="empty"):
        encoder.encode([])
    with pytest.raises(ConfigError, match="at least 2"):
        PromptEncoder(encoder.model, encoder.tokenizer, length=1)
    with pytest.raises(FileError) as caught:
        PromptEncoder.load(tmp_path)
    assert caught.value.exit_code == 4
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(FileError, match="no language model"):
        PromptEncoder.load(tmp_path)
    with pytest.raises(ConfigError, match="mask"):
        TextEmbedding(torch.zeros(1, 3, 2), torch.ones(1, 2, dtype=torch.bool))
