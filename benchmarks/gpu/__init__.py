"""The check on a GPU: `command.py` runs the sections of `sections.py`, which tell their findings to a `Bench`."""
