"""Prompts, the instruction before them, and the language models that read both."""

from fewer.generate.text.instruction import INSTRUCTION
from fewer.generate.text.prompt import PromptEncoder, TextEmbedding
from fewer.generate.text.smollm2 import smollm2_folder

__all__ = ["INSTRUCTION", "PromptEncoder", "TextEmbedding", "smollm2_folder"]
