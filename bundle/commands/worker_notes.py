"""What each worker leaves for its launcher: the exit code, and the line that says why.

torchrun tells neither. The launcher names a folder in the environment; a worker that was killed leaves nothing there,
which is how its loss is seen. Standard library only.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER_KEY = "CT_ENHANCE_EXIT_CODES"


@dataclass(frozen=True)
class Note:
    """What one worker left.

    Attributes:
        code: its exit code.
        line: its error in one line; empty when it had none.
        processes: how many workers were started beside it on this node, itself included.
    """

    code: int
    line: str
    processes: int


def leave_note(code: int, line: str = "") -> None:
    """Leave a worker's exit code and error; nothing where no launcher asked for it."""
    folder = os.environ.get(FOLDER_KEY)
    if folder:
        attempt, rank = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ.get("LOCAL_RANK", "0")
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        note = {"code": int(code), "line": line, "processes": processes}
        partial = Path(folder) / f"{attempt}.{rank}.part"  # half a note would be read as a whole one
        partial.write_text(json.dumps(note))
        partial.rename(partial.with_suffix(""))


def notes_of_last_attempt(folder: Path) -> dict[int, Note]:
    """Notes by local rank of the last time that torchrun started the workers."""
    whole = [path for path in folder.iterdir() if path.suffix != ".part"]
    found = {tuple(map(int, path.name.split("."))): path for path in whole}
    last = max((attempt for attempt, _ in found), default=0)
    return {
        rank: Note(**json.loads(path.read_text())) for (attempt, rank), path in sorted(found.items()) if attempt == last
    }


def one_was_lost(notes: Mapping[int, Note]) -> bool:
    """Whether a worker ended without a word: killed, or crashed below Python."""
    return len(notes) < max((note.processes for note in notes.values()), default=1)
