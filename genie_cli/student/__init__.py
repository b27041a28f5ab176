"""The quantized network: the integer grid, its quantizers, the protocol of bits, build and load."""
