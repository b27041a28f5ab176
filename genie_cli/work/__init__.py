"""Unfinished runs: what they have done so far, who may write an output, and the room that a run takes."""
