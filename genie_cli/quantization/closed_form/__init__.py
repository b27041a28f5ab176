"""Weights by least squares, without any steps."""
