"""DFQ: quantization from the network alone."""
