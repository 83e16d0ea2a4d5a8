"""The per-pixel work in torch, many frames at a time: what a GPU does in place of OpenCV on the processor."""
