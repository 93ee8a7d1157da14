"""Programs on top: they make models and measure them."""
