"""Calibration activations of all images: where they are kept, how they pass on, and the step sizes found from them."""
