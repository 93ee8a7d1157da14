"""Training of the learned judge and of the rubric's head."""
