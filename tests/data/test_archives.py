import pytest
from hub_files import hub_files
from hub_stub import HubStub
from training_fixtures import CountingTransform

from bundle.data.archives import ArchivePreparation, Found, prepare_archives
from bundle.data.hub import HubRepository
from bundle.errors import BundleError


@pytest.fixture(scope="module")
def files():
    return hub_files(4)


@pytest.fixture
def stub(files):
    server = HubStub(dict(files))
    yield server
    server.close()


def preparation(stub, tmp_path, transform=None, recipe=None, pairs=None):
    repository = HubRepository(
        "hf://datasets/owner/name",
        cache_dir=tmp_path / "cache",
        endpoint=stub.url,
        pause_s=0.01,
        attempts=2,
        cache_bytes=60_000,
    )
    return ArchivePreparation(
        repository,
        transform=transform or CountingTransform(size=32, slices=4, realisations=1),
        cache_dir=tmp_path / "cache",
        recipe=recipe or {},
        realisations=1,
        pairs=pairs,
    )


def prepare(stub, tmp_path, transform=None, recipe=None, pairs=None, **settings):
    return prepare_archives(preparation(stub, tmp_path, transform, recipe, pairs), **settings)


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
    stub.faults["non-APE/patient1.zip"] = ["503"] * 100
    found, skipped = prepare(stub, tmp_path)
    assert len(found) == 3 and any("did not answer" in reason for reason in skipped.values())
    stub.faults.clear()
    assert len(prepare(stub, tmp_path)[0]) == 4


def test_thick_and_thin_of_each_patient(stub, tmp_path):
    with pytest.raises(BundleError, match="no thick or thin partner"):
        prepare(stub, tmp_path, pairs="thick_thin")


def test_what_is_known_is_what_was_prepared_and_nothing_when_it_is_gone(stub, tmp_path):
    made = preparation(stub, tmp_path)
    for archive in made.archives:
        assert made.known(archive) is None
        assert made.prepare(archive) == made.known(archive) == preparation(stub, tmp_path).known(archive)
    whole = next(archive for archive in made.archives if made.known(archive).cases)
    (made.known(whole).cases[0].folder / "case.json").unlink()
    assert made.known(whole) is None and made.prepare(whole).cases


def test_what_was_given_up_is_known_but_tried_again_when_asked_to(stub, tmp_path):
    made = preparation(stub, tmp_path)
    archive = next(one for one in made.archives if one.path == "APE/patient0.zip")
    made.note(archive, Found((), {"x": "did not come"}, came=False))
    assert not made.known(archive).came and not made.known(archive).cases
    assert made.prepare(archive).came and made.known(archive).cases


def test_a_data_set_that_may_not_be_read_is_no_archive_that_is_lost(files, tmp_path):
    stub = HubStub(dict(files), token="hf_token")
    try:
        with pytest.raises(BundleError, match="missing, private or gated"):
            prepare(stub, tmp_path)
    finally:
        stub.close()
