"""Jobs for a process of its own: they have to lie in a module that it can import."""

import dataclasses
import os
import time
from pathlib import Path

from bundle.errors import BundleError, ExitCode


@dataclasses.dataclass
class Job:
    """Writes its process's number into a file, tells how far it is, and does what `end` says."""

    file: Path
    end: str = "done"

    def __call__(self, tell):
        self.file.write_text(str(os.getpid()))
        print("a library's chatter")
        tell("begun")
        if self.end == "full":
            raise BundleError("the disk is full", hint="free some space", exit_code=ExitCode.IO)
        if self.end == "defect":
            raise ZeroDivisionError("one\nby none")
        if self.end == "wait":
            time.sleep(600)
        tell("ended")
