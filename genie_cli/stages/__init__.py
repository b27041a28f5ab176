"""The stages as functions of configurations: all that commands and the library do alike, in one place."""
