"""The files that the commands hand on: schemas, validated reading, atomic writing, packing.

- ``images``: one safetensors file of calibration images;
- ``quantized``: a folder of integer weights, step sizes and metrics;
- ``metadata``: what every artifact says about itself, and the reader that checks it;
- ``packing``: integer codes as a dense stream of bits;
- ``metrics``: strict JSON of measured numbers;
- ``atomic``: files and folders that appear wholly or not at all.
"""
