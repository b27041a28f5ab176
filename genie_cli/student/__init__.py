"""What a quantized network is: the integer grid, its quantizers, who gets which bits, build and load."""
