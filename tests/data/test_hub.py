import logging

import pytest
from hub_stub import SHA, HubStub

from bundle.data.hub import HubRepository, Unreachable, as_categories
from bundle.errors import BundleError

URL = "hf://datasets/owner/name"
FILES = {
    "APE/p1.zip": bytes(range(256)) * 1500,
    "APE/p2.zip": b"2" * 200_000,
    "non_APE/p3.zip": b"3" * 300_000,
    "non_APE/empty.zip": b"",
    "other/p4.zip": b"4",
    "README.md": b"# data",
}


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    server = HubStub(dict(FILES))
    yield server
    server.close()


def repository(stub, tmp_path, url=URL, **settings):
    return HubRepository(url, cache_dir=tmp_path / "cache", endpoint=stub.url, pause_s=0.01, **settings)


def test_archives_of_the_categories_at_a_pinned_revision(stub, tmp_path):
    found = repository(stub, tmp_path)
    assert found.revision == SHA
    assert [archive.path for archive in found.archives] == [
        "APE/p1.zip",
        "APE/p2.zip",
        "non_APE/empty.zip",
        "non_APE/p3.zip",
    ]
    assert {archive.category for archive in found.archives} == {"APE", "non-APE"}
    assert [a.size for a in found.archives] == [384_000, 200_000, 0, 300_000]
    for spelling in ("non-APE", "non_ape", "NonAPE"):
        only = repository(stub, tmp_path, categories=[spelling]).archives
        assert {archive.path.split("/")[0] for archive in only} == {"non_APE"}
    assert repository(stub, tmp_path, f"{URL}@{SHA}").revision == SHA


def test_an_archive_is_fetched_once_and_whole(stub, tmp_path):
    source = repository(stub, tmp_path)
    for _ in range(2):
        assert source.fetch(source.archives[0]).read_bytes() == FILES["APE/p1.zip"]
    again = repository(stub, tmp_path)
    again.fetch(again.archives[0])
    assert stub.sent == {"APE/p1.zip": 384_000} and source.fetched_bytes == 384_000 and again.fetched_bytes == 0


@pytest.mark.parametrize("faults", [["503"], ["cut"], ["cut", "503", "cut"], ["slow"]])
def test_what_passes_is_tried_again(stub, tmp_path, faults):
    stub.faults["APE/p1.zip"] = list(faults)
    source = repository(stub, tmp_path)
    assert source.fetch(source.archives[0]).read_bytes() == FILES["APE/p1.zip"]
    assert stub.sent["APE/p1.zip"] <= 384_000 * (1 + faults.count("cut"))


def test_a_listing_survives_errors(stub, tmp_path):
    stub.faults["tree"] = ["503", "503"]
    assert len(repository(stub, tmp_path).archives) == 4


def test_an_archive_that_never_comes_is_one_line_and_no_file(stub, tmp_path, monkeypatch):
    stub.faults["APE/p1.zip"] = ["503"] * 500
    source = repository(stub, tmp_path, attempts=2)
    with pytest.raises(BundleError, match=r"did not answer .* in 2 attempts") as caught:
        source.fetch(source.archives[0])
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.zip"))


def test_the_cache_is_bounded_and_keeps_the_newest(stub, tmp_path):
    source = repository(stub, tmp_path, cache_bytes=600_000)
    for archive in source.archives:
        if archive.size:
            assert source.fetch(archive).is_file()
            held = list((tmp_path / "cache").rglob("*.zip"))
            assert sum(path.stat().st_size for path in held) <= 600_000
    assert {path.name for path in held} == {"p2.zip", "p3.zip"}
    tiny = repository(stub, tmp_path, cache_bytes=1)
    assert tiny.fetch(tiny.archives[0]).is_file()


def test_a_gated_data_set_says_what_to_do_and_a_token_opens_it(tmp_path, monkeypatch, caplog):
    stub = HubStub(dict(FILES), token="hf_secret")
    try:
        monkeypatch.delenv("HF_TOKEN", raising=False)
        with pytest.raises(BundleError, match=r"missing, private or gated .*HF_TOKEN"):
            _ = repository(stub, tmp_path).archives
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        with caplog.at_level(logging.DEBUG):
            source = repository(stub, tmp_path)
            assert source.fetch(source.archives[1]).stat().st_size == 200_000
        assert "hf_secret" not in caplog.text
    finally:
        stub.close()


def test_no_network_is_one_line(tmp_path):
    stub = HubStub({})
    stub.close()
    with pytest.raises(BundleError, match="did not answer") as caught:
        _ = repository(stub, tmp_path, attempts=2).revision
    assert "\n" not in str(caught.value)


def test_a_file_that_is_lost_is_told_from_a_network_that_is(stub, tmp_path):
    source = repository(stub, tmp_path, attempts=1)
    archive = source.archives[0]
    stub.faults[archive.path] = ["503"] * 10
    with pytest.raises(Unreachable):
        source.fetch(archive)
    assert source.answers()
    stub.faults["info"] = ["503"]
    assert not source.answers() and source.answers()
    stub.token = "hf_token"
    with pytest.raises(BundleError, match="missing, private or gated") as caught:
        source.answers()
    assert not isinstance(caught.value, Unreachable)


def test_nothing_in_the_categories_and_an_unknown_revision(stub, tmp_path):
    with pytest.raises(BundleError, match="holds no ZIP in CTPA"):
        _ = repository(stub, tmp_path, categories=["CTPA"]).archives
    with pytest.raises(BundleError, match="has no revision 'v9'"):
        _ = repository(stub, tmp_path, f"{URL}@v9").revision


@pytest.mark.parametrize("url", ["hf://owner/name", "hf://datasets/name", "hf://datasets/a/b/c", "hf://"])
def test_wrong_addresses(url, tmp_path):
    with pytest.raises(BundleError, match="no data set of the hub"):
        HubRepository(url, cache_dir=tmp_path)


def test_categories_of_a_config():
    assert as_categories("APE, non-APE") == as_categories(["APE", "non-APE"]) == as_categories(None)
