"""Device and precision, determinism, progress events: what long stages run on."""
