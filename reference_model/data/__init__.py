"""Data sets: from a download to batches of tensors."""
