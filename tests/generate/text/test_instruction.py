"""The instruction is, to the letter, the one that published models were trained with."""

import inspect

from diffusers import SanaPipeline

from fewer.generate.text import INSTRUCTION


def test_equals_diffusers_default():
    default = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    assert list(INSTRUCTION) == default
