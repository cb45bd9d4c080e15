"""The wall clock of a process, moved while it runs; its monotonic clock, and everybody else's, stay as they are.

A library of 80 lines does it, compiled here and preloaded. libfaketime would do as well, but from the package registry
it comes as C sources under the GPL, which every `make up` would then have to compile; this needs a compiler only where
the test is run.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_name("moved_clock.c")
_NANOSECONDS = 1_000


class MovedClock:
    """The clock of the processes that are started with `environment`. Begins unmoved; `home` gets its files."""

    def __init__(self, home: Path) -> None:
        if shutil.which("cc") is None:
            pytest.skip("moving a process's clock takes a C compiler, `cc`")
        self._library = home / "moved_clock.so"
        self._offset = home / "moved_clock.offset"
        command = [
            "cc",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
            str(_SOURCE),
            "-o",
            str(self._library),
        ]
        subprocess.run([*command, "-ldl"], check=True)
        self._offset.write_bytes(struct.pack("=q", 0))

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "MOVED_CLOCK": str(self._offset)}

    def move(self, by: timedelta) -> None:
        """From the true time, at once."""
        file = os.open(self._offset, os.O_WRONLY)
        try:
            # One write of 8 bytes: nobody sees half of it.
            os.pwrite(file, struct.pack("=q", by // timedelta(microseconds=1) * _NANOSECONDS), 0)
        finally:
            os.close(file)
