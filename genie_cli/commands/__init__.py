"""One thin file a command: options in, library call, rich out."""
