"""Entry point of ``python -m reference_model``."""

from reference_model.cli.app import run

run()
