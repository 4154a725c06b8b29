"""Entry point of ``python -m reference_model.evidence``."""

from reference_model.runtime.signals import exit_on_signals

exit_on_signals()  # before the imports of the command line, which take seconds

from reference_model.cli.group import run  # noqa: E402
from reference_model.evidence.commands import main  # noqa: E402

run(main, "python -m reference_model.evidence")
