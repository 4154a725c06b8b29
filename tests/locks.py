"""A process that holds the lock of a folder."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOLD = """
import socket, sys, time
if len(sys.argv) > 2:
    socket.gethostname = lambda: sys.argv[2]
from pathlib import Path
from reference_model.runtime import lease
lease.LEASE_SECONDS = float(sys.argv[3]) if len(sys.argv) > 3 else lease.LEASE_SECONDS
with lease.lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Have another process lock the folder.

    Args:
        folder: the folder.
        arguments: a host name, to seem to be on another machine, and the seconds of the lease there.
    """
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()
