"""Models that learn, and their architectures."""
