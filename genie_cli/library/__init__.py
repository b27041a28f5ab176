"""The face of genie in Python: the functions that `genie_cli` offers, on networks and images in memory."""
