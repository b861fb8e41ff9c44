import io
import zipfile

import pytest
from hub_stub import HubStub
from phantom_series import write_phantom_series
from training_fixtures import CountingTransform

from bundle.data.archives import prepare_archives
from bundle.data.hub import HubRepository
from bundle.errors import BundleError


def zipped(folder):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.dcm")):
            archive.write(path, path.relative_to(folder))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Four patients under one Patient ID, as de-identified data often have them, and two archives that are no use."""
    root = tmp_path_factory.mktemp("ape")
    found = {}
    for number in range(4):
        write_phantom_series(
            root / str(number), slices=4, size=32, seed=number, series=f"s{number}", patient="anonymous"
        )
        found[f"{'APE' if number < 2 else 'non-APE'}/patient{number}.zip"] = zipped(root / str(number))
    corrupt = found["APE/patient0.zip"][:-400]
    return {**found, "APE/empty.zip": b"", "APE/corrupt.zip": corrupt}


@pytest.fixture
def stub(files):
    server = HubStub(dict(files))
    yield server
    server.close()


def prepare(stub, tmp_path, transform=None, recipe=None, **settings):
    repository = HubRepository(
        "hf://datasets/owner/name",
        cache_dir=tmp_path / "cache",
        endpoint=stub.url,
        pause_s=0.01,
        attempts=2,
        cache_bytes=60_000,
    )
    transform = transform or CountingTransform(size=32, slices=4, realisations=1)
    return prepare_archives(
        repository,
        transform=transform,
        cache_dir=tmp_path / "cache",
        recipe=recipe or {},
        realisations=1,
        **settings,
    )


def test_every_archive_is_a_patient_and_bad_ones_are_counted(stub, tmp_path):
    found, skipped = prepare(stub, tmp_path)
    assert len(found) == 4 and len({case.patient_key for case in found}) == 4
    assert [case.key for case in found] == sorted(case.key for case in found)
    assert sorted(skipped.values())[0] == "archive is empty" and len(skipped) == 2
    assert not any("patient" in key or "corrupt" in key for key in skipped)


def test_a_second_run_fetches_nothing_that_it_knows(stub, tmp_path):
    first = prepare(stub, tmp_path)
    sent = dict(stub.sent)
    transform = CountingTransform(size=32, slices=4, realisations=1)
    assert prepare(stub, tmp_path, transform) == first
    assert dict(stub.sent) == sent and transform.calls == 0
    prepare(stub, tmp_path, transform, recipe={"changed": 1})
    assert transform.calls == 4


def test_max_samples_stops_the_fetching(stub, tmp_path):
    found, _ = prepare(stub, tmp_path, max_samples=1)
    assert len(found) == 1 and len(stub.gets) < 5


def test_what_the_network_lost_is_tried_again(stub, tmp_path):
    stub.faults["APE/patient1.zip"] = ["503"] * 100
    found, skipped = prepare(stub, tmp_path)
    assert len(found) == 3 and any("did not answer" in reason for reason in skipped.values())
    stub.faults.clear()
    assert len(prepare(stub, tmp_path)[0]) == 4


def test_thick_and_thin_of_each_patient(stub, tmp_path):
    with pytest.raises(BundleError, match="no thick or thin partner"):
        prepare(stub, tmp_path, pairs="thick_thin")
