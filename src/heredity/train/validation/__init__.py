"""What held-out data says during training."""
