from training_fixtures import CountingTransform, write_phantoms

from bundle.configuration import exit_code
from bundle.data.assembly import TrainingData
from bundle.data.preparation import prepare_ahead, told
from bundle.errors import BundleError, ExitCode


def data(tmp_path, **settings):
    transform = CountingTransform(size=32, slices=12, **settings)
    scans = write_phantoms(tmp_path / "scans", patients=2)
    return TrainingData(scans, transform=transform, cache_dir=tmp_path / "cache", num_slices=4, realisations=2)


def test_a_clean_preparation_ends_with_0(tmp_path, capsys):
    prepare_ahead(data(tmp_path), tmp_path / "run")
    assert exit_code() == ExitCode.DONE and (tmp_path / "run" / "data.json").is_file()
    out = capsys.readouterr().out
    assert "2 cases of 2 patients are used\n0 skipped\ntrain: 1\n" in out and "slices 0 to 11" in out


def test_reasons_are_counted(tmp_path):
    made = data(tmp_path)
    _ = made.split
    made.skipped = {"a": "no HU", "b": "no HU", "c": "gap"}
    assert told(made)[1:4] == ["3 skipped:", "  2 x no HU", "  1 x gap"]


def test_what_was_skipped_though_it_should_be_usable_ends_with_3(tmp_path):
    made = data(tmp_path)
    first = next(iter((tmp_path / "scans").rglob("*.dcm"))).name
    real = made.transform.__call__

    def transform(item):
        if any(file.endswith(first) and "patient0" in file for file in item["image"]):
            raise BundleError("no HU")
        return real(item)

    made.transform = transform
    prepare_ahead(made, tmp_path / "run")
    assert exit_code() == ExitCode.PARTIAL
