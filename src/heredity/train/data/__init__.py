"""The data of each training step."""
