"""The files that one command writes and another reads: schemas, validated reading, atomic writing, packing.

- ``images``: one safetensors file of calibration images;
- ``quantized``: a folder of integer weights, step sizes and metrics;
- ``metadata``: the fields that every artifact records about itself, and the reader that checks them;
- ``packing``: integer codes as a dense stream of bits;
- ``metrics``: strict JSON of measured numbers;
- ``atomic``: files and folders that appear wholly or not at all.
"""
