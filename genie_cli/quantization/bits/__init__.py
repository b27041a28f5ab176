"""Bits where they pay: the cost of each width, the size that it takes, and the choice within a budget."""
