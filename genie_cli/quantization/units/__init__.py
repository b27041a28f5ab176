"""Reconstruction units: where a network is cut, and the graph of each."""
