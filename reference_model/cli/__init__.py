"""The command line of the reference model."""
