"""How a sentence in anybody's words becomes one of those that the built-in model was trained on."""

from fewer.generate.reading.reader import PromptReader, reader_of

__all__ = ["PromptReader", "reader_of"]
