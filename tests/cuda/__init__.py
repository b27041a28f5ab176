"""Tests of what runs on a GPU: on a real one (marked `cuda`), and on a pretended one."""
