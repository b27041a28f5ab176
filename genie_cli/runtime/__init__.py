"""The base of long stages: device and precision, determinism, memory, processes, progress events."""
