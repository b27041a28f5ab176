"""Learning a quantized network: where to cut, reconstruction, presets."""
