"""Quantized copies of checkpoints with llmcompressor: what can be made, what it will take, and what was made.

`agents/quantize.py` is the recipe that puts these parts together; docs/quantization.md is the page about both.
"""

from __future__ import annotations
