"""Figures of a network: what it is measured by."""
