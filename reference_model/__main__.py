"""Entry point of ``python -m reference_model``."""

from reference_model.runtime.signals import exit_on_signals

exit_on_signals()  # before the imports of the command line, which take seconds

from reference_model.cli.app import run  # noqa: E402

run()
