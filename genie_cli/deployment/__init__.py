"""Deployment: a network as a file that other runtimes run, and the check that it answers there as it does in genie."""
