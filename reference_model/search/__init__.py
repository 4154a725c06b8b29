"""A trained model in use: embeddings, indices of them on disk, search, one folder to keep."""
