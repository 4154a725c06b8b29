"""The engine: how a loss is computed, whatever the loss."""
