"""The commands synthesize and prepare: each names the command to run next."""

from pathlib import Path

from runs import CommandLine


def test_synthesize_names_the_next_command(tmp_path: Path, command_line: CommandLine) -> None:
    for seconds, length in ((0.5, " --clip-seconds 0.5"), (1.5, "")):
        out = tmp_path / str(seconds)
        done = command_line("synthesize", "--out", out, "--train", 2, "--val", 2, "--test", 2, "--seconds", seconds)
        assert f"{out / 'Synthetic'} holds 2 + 2 + 2 clips" in done.output
        assert f"reproduce --data {out} --dataset Synthetic --model tiny{length} ..." in done.output


def test_prepare_names_an_experiment_of_the_paper_alone(tmp_path: Path, command_line: CommandLine) -> None:
    raw = tmp_path / "raw"
    command_line("synthesize", "--out", raw, "--train", 2, "--val", 2, "--test", 2)
    for dataset, names_one in (("Clotho", True), ("Mine", False)):
        done = command_line("prepare", "--dataset", dataset, "--raw", raw / "Synthetic", "--data", tmp_path / "data",
                            "--workers", 0)  # fmt: skip
        assert f"{tmp_path / 'data' / dataset} is ready" in done.output
        next_command = f"next: python -m reference_model train --experiment clotho-frozen-triplet_sum --data {tmp_path}"
        assert (next_command in done.output) == names_one
