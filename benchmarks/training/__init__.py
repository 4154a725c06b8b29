"""Benchmarks of training the reference model: reading of clips, runs with frozen encoders, fine-tuning."""
