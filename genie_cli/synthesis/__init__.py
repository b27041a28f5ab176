"""GENIE-D: images from a teacher's batch-norm statistics."""
