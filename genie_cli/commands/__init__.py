"""One thin file per command: options in, library call, rich out."""
