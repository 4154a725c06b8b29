"""Retrieval metrics, and their measurement on a split."""
