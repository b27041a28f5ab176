"""GENIE-M: learn a quantized network by reconstruction, unit by unit."""
