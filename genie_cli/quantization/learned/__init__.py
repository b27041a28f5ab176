"""The things that learn: weights behind soft or nearest rounding, and activation step sizes."""
