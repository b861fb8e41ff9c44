import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest
from phantom_series import phantom_hu, write_phantom_series

import bundle
from bundle.commands.inspect import inspect
from bundle.commands.main import main
from bundle.errors import BundleError

ROOT = Path(bundle.__file__).resolve().parents[1]


def everything(folder):
    """Two usable series, one with a gap, one that is no CT, a file that only claims to be DICOM."""
    write_phantom_series(folder / "plain", series="plain")
    write_phantom_series(folder / "long", series="long", ConvolutionKernel="X" * 16)
    write_phantom_series(folder / "gap", series="gap", drop=(4, 5))
    write_phantom_series(folder / "mr", series="mr", Modality="MR")
    (folder / "notes.dcm").write_text("no image at all" * 40)
    return folder


@pytest.fixture
def reported(tmp_path, capsys):
    """The JSON that `inspect FOLDER *arguments` prints."""

    def run(folder, *arguments):
        inspect([str(folder), "--json", *arguments])
        return json.loads(capsys.readouterr().out)

    return run


def test_table(tmp_path, capsys):
    assert main(["inspect", str(everything(tmp_path))]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "2 usable, 1 refused, 1 no CT volume"
    assert max(map(len, lines)) <= 80 and captured.err == ""
    (row,) = [line for line in lines if "64x64" in line and line.endswith("STD")]
    assert row.split()[1:5] == ["64x64x12", "0.80x0.80x2.50", "120", "-"] and 10 < float(row.split()[5]) < 20
    text = " ".join(captured.out.split())
    assert "plain: Phantom P1, CHEST, 2.5 mm thick, Explicit VR Little Endian" in text
    assert "refused: gap/" in text and "2 missing slices (gap): 7.5 mm" in text and "to do: fetch the missing" in text
    assert "Modality is MR, not CT" in text and "no DICOM in spite of the name: notes.dcm" in text


def test_json(tmp_path, reported):
    content = reported(everything(tmp_path))
    assert content["schema_version"] == 1 and content["ignored"] == ["notes.dcm"]
    verdicts = [report["verdict"] for report in content["series"]]
    assert verdicts == ["usable", "usable", "refused", "not CT volume"]
    wanted = "scanner kernel kvp exposure_mas spacing_mm thickness_mm tilt_degrees missing_slices duplicates irregular"
    for report in content["series"]:
        assert {*wanted.split(), "transfer_syntax", "noise_hu", "verdict", "reason"} <= report.keys()
        assert report["reason"] and (report["noise_hu"] is None) == (report["verdict"] != "usable")


def test_noise(tmp_path, reported, capsys):
    hu = phantom_hu(size=96)
    hu[20:76, 20:76] = 40  # smooth tissue: no noise
    write_phantom_series(tmp_path / "smooth", series="smooth", hu=hu)
    write_phantom_series(tmp_path / "noisy", series="noisy", size=96)
    assert {r["noise_hu"] for r in reported(tmp_path, "--noise", "false")["series"]} == {None}
    levels = {r["where"]: r["noise_hu"] for r in reported(tmp_path)["series"]}
    assert levels["smooth"] < 1 and 10 < levels["noisy"] < 20  # the phantom's is 15
    inspect([str(tmp_path)])
    assert f" {levels['noisy']:.4g} STD" in capsys.readouterr().out


def test_noise_finds_pixels_that_cannot_be_decoded(tmp_path, reported):
    write_phantom_series(tmp_path / "good", series="good")
    write_phantom_series(tmp_path / "bad", series="bad", slices=3, transfer_syntax=pydicom.uid.JPEGLSLossless)
    for path in (tmp_path / "bad").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PixelData = dataset.PixelData[:200] + bytes(len(dataset.PixelData) - 208) + dataset.PixelData[-8:]
        dataset.save_as(path)
    assert len(reported(tmp_path, "--noise", "false")["series"]) == 2
    verdicts = {r["where"]: r["verdict"] for r in reported(tmp_path)["series"]}
    assert verdicts == {"good": "usable", "bad": "refused"}


def test_gaps_may_be_resampled(tmp_path, reported):
    write_phantom_series(tmp_path, drop=(5,))
    for option in (["--gaps", "resample"], ["--gaps=resample"]):
        (report,) = reported(tmp_path, *option)["series"]
        assert (report["verdict"], report["missing_slices"], report["size"]) == ("usable", 1, [64, 64, 12])
    for option in (["--gaps"], ["--gaps", "guess"]):
        with pytest.raises(BundleError, match="gaps"):
            reported(tmp_path, *option)


def test_nothing_usable_is_said_after_the_reasons(tmp_path, capsys):
    write_phantom_series(tmp_path, slices=1)
    assert main(["inspect", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "is a single slice" in captured.out
    assert captured.err == "error: no usable CT series (the reasons are listed above)\n"


def test_input_that_is_missing_or_empty(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "nothing")]) == 2
    assert main(["inspect", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "DIR is required"),
        (["--json"], "DIR is required"),
        (["in", "more"], "unexpected argument 'more'"),
        (["in", "--jsn"], "did you mean --json"),
        (["in", "--noise", "maybe"], "unexpected argument 'maybe'"),
        (["in", "--noise=maybe"], "neither true nor false"),
        (["in", "--gap"], "did you mean --gaps"),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(BundleError, match=words):
        inspect(arguments)


def test_help(capsys):
    assert main(["inspect", "--help"]) == 0
    assert "inspect DIR [--json]" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--noise", "false"]])
def test_no_identifiers(tmp_path, capsys, arguments):
    folder = tmp_path / "Secret" / "in"
    write_phantom_series(folder / "a", series="a", patient="Secret-1", PatientName="Secret^A", AccessionNumber="Secret")
    write_phantom_series(folder / "b", series="b", patient="Secret-2", drop=(2,), InstitutionName="Secret")
    assert main(["inspect", str(folder), *arguments]) == 0
    captured = capsys.readouterr()
    assert "Secret" not in captured.out + captured.err and not re.search(r"\d{12}", captured.out)


def start(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_starts_without_the_heavy_libraries(tmp_path):
    write_phantom_series(tmp_path, slices=3)
    code = "import sys; from bundle.commands.main import main; main(['inspect', sys.argv[1]]); print(*sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = start(code, tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "monai", "scipy", "pandas", "matplotlib"} & set(done.stdout.split())
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # wall time depends on neighbours
    assert spent < 2


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    write_phantom_series(tmp_path, slices=3)
    command = f"{sys.executable} -m bundle inspect {tmp_path} --json | true; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
