"""Accuracy of a network, agreement with its teacher, and the table that compares runs."""
