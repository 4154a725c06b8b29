"""Run the parts: ``python -m benchmarks.gpu --part values --part behaviour --part speed``, or one of them.

The exit status is 0 if everything that was run passed. ``--device cpu`` tries all of it, with tiny sizes.
"""

import argparse
import faulthandler
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu import behaviour, speed, values
from benchmarks.gpu.report import PARTS, OutOfTime, Report
from benchmarks.gpu.setting import gpu, trial

RUN = dict(zip(PARTS, (values.run, behaviour.run, speed.run), strict=True))

# Seconds for each part, and those after which one that hangs is ended.
LIMIT, HANGS = 540.0, 590.0

RESULTS = Path(__file__).parents[1] / "results" / "gpu.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that the arguments name; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="a part; may be repeated; default: all")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: tiny sizes, for a trial")
    parser.add_argument("--seconds", type=float, default=LIMIT, help="time limit of each part (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"expected a CUDA device, got none: torch {torch.__version__} sees no GPU")
    setting = gpu() if options.device == "cuda" else trial()
    passed = True
    for part in options.part or PARTS:
        report = Report(options.out, part, setting.device, options.seconds)
        faulthandler.dump_traceback_later(options.seconds + HANGS - LIMIT, exit=True)
        try:
            RUN[part](report, setting)
            report.finish()
        except OutOfTime as error:
            print(error, file=sys.stderr)
            report.write()
        finally:
            faulthandler.cancel_dump_traceback_later()
        failed = sum(not result["passed"] for result in report.results)
        print(f"{part}: {len(report.results)} results, {failed} failed, {report.part['seconds']} s; {options.out}")
        passed &= report.passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
