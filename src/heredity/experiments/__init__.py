"""Studies that both make and measure models: repair, tampering, exposure, scaling laws."""
