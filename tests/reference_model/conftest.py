"""A miniature corpus, and the command line as a user calls it."""

from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from click.testing import CliRunner, Result
from runs import CommandLine

from reference_model.cli.app import main
from reference_model.config import ADDED_SETTINGS, Config
from reference_model.data.corpus import Corpus
from reference_model.data.synthetic import synthesize
from reference_model.paper import PROTOCOLS
from reference_model.training.trainer import train


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Reset Accelerate, which keeps the precision of its first use in a process."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder: 16 + 6 + 6 synthetic clips of half a second."""
    root = tmp_path_factory.mktemp("data")
    synthesize(Corpus(train=16, val=6, test=6, seconds=0.5), root)
    return root


@pytest.fixture(scope="session")
def config(corpus: Path) -> Config:
    """A run that takes seconds."""
    return Config(
        data=str(corpus),
        dataset="Synthetic",
        clip_seconds=0.5,
        loss="nt_xent",
        encoders="fine-tuned",
        model="tiny",
        audio_checkpoint=None,
        text_encoder=None,
        batch_size=16,
        learning_rate=1e-3,
        epochs=2,
        decay_every=20,
        gradient_cache_micro_batch=None,
        seed=0,
        precision="no",
        workers=0,
        **ADDED_SETTINGS,
        **PROTOCOLS["paper"],
    )


@pytest.fixture(scope="session")
def trained(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of one epoch; tests copy it before they write to it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = tmp_path_factory.mktemp("runs") / "trained"
    train(replace(config, epochs=1), run)
    return run


@pytest.fixture
def command_line() -> CommandLine:
    """Call ``python -m reference_model ARGUMENTS`` in this process, and see that it ends in the exit status."""

    def invoke(*arguments: object, status: int = 0) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == status, result.output
        return result

    return invoke
