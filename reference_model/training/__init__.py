"""Training: one run, and the pre-training of small encoders."""
