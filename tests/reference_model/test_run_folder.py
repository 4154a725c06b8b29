"""The folder of a run: refused, continued, or finished."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from reference_model import InputError
from reference_model.config import Config
from reference_model.run_folder import Diverged, open_run
from reference_model.runtime.files import write_json
from reference_model.runtime.lease import Busy, lock_folder
from reference_model.training.trainer import train


def test_a_finished_run_is_not_repeated_and_no_other_overwrites_it(config: Config, tmp_path: Path) -> None:
    config, run = replace(config, epochs=1), tmp_path / "run"
    run.mkdir()
    with lock_folder(run), pytest.raises(Busy, match=r"expected .*run for this run alone, got one that is under"):
        train(config, run)
    metrics = train(config, run)
    before = (run / "best.safetensors").stat().st_mtime_ns
    assert train(config, run) == json.loads(json.dumps(metrics))
    with pytest.raises(InputError, match=r"a run of another \(learning_rate 0.001 there, 0.5 here\); choose another"):
        train(replace(config, learning_rate=0.5), run)
    assert (run / "best.safetensors").stat().st_mtime_ns == before
    (foreign := tmp_path / "foreign").mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"got something without config\.json"):
        train(config, foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]


def test_a_folder_is_made_found_finished_or_diverged(config: Config, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    assert open_run(config, run) is None
    assert not list(run.iterdir())
    (run / ".config.json.part").mkdir()  # of a process that was killed
    (run / "log.txt").touch()
    assert open_run(config, run) is None
    write_json(run / "config.json", config.as_dict())
    assert not (run / ".config.json.part").exists()
    assert open_run(replace(config, data="elsewhere", workers=7), run) is None
    (run / "checkpoint.safetensors").touch()
    write_json(run / "metrics.json", {"best_epoch": 1})
    assert open_run(config, run) == {"best_epoch": 1}
    assert not (run / "checkpoint.safetensors").exists()
    write_json(run / "diverged.json", {"reason": "the loss is nan"})
    with pytest.raises(Diverged, match="the loss is nan"):
        open_run(config, run)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"expected .*file to be new or a run's folder"):
        open_run(config, tmp_path / "file")
    with pytest.raises(InputError, match=r"expected to write a run in /sys/run, got: .*; --out names another folder"):
        open_run(config, Path("/sys/run"))  # which refuses even the superuser
