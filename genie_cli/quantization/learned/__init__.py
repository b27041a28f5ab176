"""What learns: weights behind soft or nearest rounding, and activation step sizes."""
