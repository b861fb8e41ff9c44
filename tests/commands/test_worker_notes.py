import json

import pytest

from bundle.commands.main import main
from bundle.commands.worker_notes import Note, leave_note, notes_of_last_attempt, one_was_lost


@pytest.fixture
def worker(monkeypatch, tmp_path):
    def be(rank, *, attempt=0, processes=2):
        monkeypatch.setenv("CT_ENHANCE_EXIT_CODES", str(tmp_path))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))

    return be


def test_a_process_without_a_launcher_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.delenv("CT_ENHANCE_EXIT_CODES", raising=False)
    monkeypatch.chdir(tmp_path)
    leave_note(2, "error: x")
    assert not list(tmp_path.iterdir())


def test_the_last_attempt_counts(worker, tmp_path):
    worker(0)
    leave_note(70, "error: first")
    worker(1, attempt=2)
    leave_note(75, "error: second")
    assert notes_of_last_attempt(tmp_path) == {1: Note(75, "error: second", 2)}


def test_who_left_no_note_was_lost(worker, tmp_path):
    worker(1)
    leave_note(75)
    assert one_was_lost(notes_of_last_attempt(tmp_path))
    worker(0)
    leave_note(75)
    assert not one_was_lost(notes_of_last_attempt(tmp_path))
    assert one_was_lost({})


def test_half_a_note_is_none(worker, tmp_path):
    worker(0)
    leave_note(75)
    (tmp_path / "0.1.part").write_text(json.dumps({"code": 0})[:5])
    assert notes_of_last_attempt(tmp_path).keys() == {0}


def test_a_command_leaves_what_it_said(worker, tmp_path, capsys):
    worker(0, processes=1)
    assert main(["run", "training"]) == 2
    said = capsys.readouterr().err
    assert notes_of_last_attempt(tmp_path) == {0: Note(2, said.strip(), 1)} and said.startswith("error: ")
