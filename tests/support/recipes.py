"""Options that make a run short where a test is not about them."""

MINMAX_RANGES = {"weight_range": "minmax", "activation_range": "minmax"}
"""Ranges that are found at once: to search for them takes half of a short quantization."""
