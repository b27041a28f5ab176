"""The optimisation of one unit: its task, its parameters, its steps."""
