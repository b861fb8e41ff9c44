import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bundle
from bundle.commands import main as module
from bundle.commands.main import ct_enhance, main
from bundle.errors import BundleError, ExitCode, InterruptedRun

ROOT = Path(bundle.__file__).resolve().parents[1]


def start(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "bundle", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        **options,
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["run", "--help"], ["enhance", "--help"], ["enhance"]])
def test_help(arguments, capsys):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "usage:" in text
    for code in ExitCode:
        assert f"\n  {int(code)} " in text


def test_help_fits_a_terminal(capsys):
    main(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_help_of_the_console_script(capsys):
    assert ct_enhance([]) == 0
    assert "ct-enhance INPUT OUTPUT" in capsys.readouterr().out


@pytest.mark.parametrize("call", [main, ct_enhance])
def test_version(call, capsys):
    assert call(["--version"]) == 0
    assert capsys.readouterr().out == f"ct-enhance {bundle.__version__}\n"


def test_help_does_not_wait_for_imports():
    code = "import sys; from bundle.commands.main import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch", "monai", "numpy", "yaml", "fire"} & set(done.stdout.replace("'", "").replace(",", "").split())


def test_as_a_process():
    done = start("runn")
    assert done.returncode == 2
    assert done.stderr == "error: unknown command 'runn' (python -m bundle --help lists the commands)\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BundleError("no"), 2),
        (BundleError("full", exit_code=ExitCode.IO), 74),
        (KeyboardInterrupt(), 75),
        (SystemExit("error: by a config"), 2),
        (SystemExit(3), 3),
        (SystemExit(None), 0),
        (ZeroDivisionError("oops"), 70),
    ],
)
def test_errors_become_one_line_and_a_code(error, code, capsys):
    def action():
        raise error

    assert module._reported(action) == code
    assert len(capsys.readouterr().err.splitlines()) == (0 if isinstance(error, SystemExit) and code != 2 else 1)


def test_an_error_that_monai_wrapped_keeps_its_code(capsys):
    def action():
        try:
            raise BundleError("no CT below dataset_dir")
        except BundleError as error:
            raise RuntimeError("Failed to evaluate") from error

    assert module._reported(action) == 2
    assert capsys.readouterr().err == "error: no CT below dataset_dir\n"


def test_sigterm_is_an_interrupted_run(capsys):
    before = signal.getsignal(signal.SIGTERM)

    def action():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        return 0

    assert module._reported(action) == 75
    assert "stopped by SIGTERM (run the same command again to go on)" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_does_not_keep_a_worker_from_leaving_its_code(capsys):
    """torchrun sends it to all as soon as one has ended, when the others are about to say the same."""
    before, left = signal.getsignal(signal.SIGTERM), []

    def action():
        raise InterruptedRun("another process of this run was lost")

    def leave(code, line):
        os.kill(os.getpid(), signal.SIGTERM)
        left.append((code, line))

    assert module._reported(action, leave=leave) == 75
    assert left == [(75, capsys.readouterr().err.strip())] and "was lost" in left[0][1]
    assert signal.getsignal(signal.SIGTERM) == before
