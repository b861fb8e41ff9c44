from pathlib import Path

import pytest
from hub_stub import HubStub
from torch.utils.data import DataLoader

from bundle.data.hub import HubRepository
from bundle.data.streaming import epoch_order, shard, stream_archives

FILES = {f"{'APE' if n % 2 else 'non-APE'}/p{n:02d}.zip": bytes([n]) * (1000 + n) for n in range(11)}


@pytest.fixture
def stub():
    server = HubStub({**FILES, "APE/empty.zip": b""})
    yield server
    server.close()


@pytest.fixture
def source(stub, tmp_path):
    return HubRepository("hf://datasets/owner/name", cache_dir=tmp_path, endpoint=stub.url, pause_s=0.01, attempts=2)


def names(stream):
    return [item["archive"] for item in stream]


def test_orders_are_permutations_of_seed_and_epoch():
    orders = {(seed, epoch): tuple(epoch_order(9, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(set(orders.values())) == 9 and all(sorted(order) == list(range(9)) for order in orders.values())
    assert tuple(epoch_order(9, seed=1, epoch=2)) == orders[1, 2]


@pytest.mark.parametrize(("count", "world"), [(12, 3), (11, 4), (3, 5), (7, 1)])
def test_ranks_take_equally_many_and_together_all(count, world):
    shards = [shard(range(count), rank=rank, world_size=world) for rank in range(world)]
    assert len({len(one) for one in shards}) == 1
    assert set().union(*shards) == set(range(count))
    assert sum(map(len, shards)) - count < world


def test_the_stream_brings_every_archive_with_its_content(source):
    items = list(stream_archives(source, seed=1))
    assert sorted(item["archive"] for item in items) == sorted([*FILES, "APE/empty.zip"])
    for item in items:
        if item["archive"] == "APE/empty.zip":
            assert item["skipped"] == "archive is empty" and not item["file"]
        else:
            assert Path(item["file"]).read_bytes() == FILES[item["archive"]] and not item["skipped"]
    assert names(stream_archives(source, seed=1, epoch=1)) != [item["archive"] for item in items]


@pytest.mark.parametrize("taken", [0, 1, 5, 11])
def test_a_resume_goes_on_exactly(source, taken):
    whole = names(stream_archives(source, seed=3, epoch=2))
    stream = stream_archives(source, seed=3, epoch=2)
    items = iter(stream)
    head = [next(items)["archive"] for _ in range(taken)]
    state = stream.state_dict()
    again = stream_archives(source, seed=3, epoch=2)
    if taken:
        again.load_state_dict(state)
    assert head + names(again) == whole


def test_nothing_is_fetched_before_its_turn(source, stub):
    items = iter(stream_archives(source, seed=0))
    for _ in range(3):
        next(items)
    assert sum(stub.gets.values()) <= 3


def test_workers_share_the_archives(source):
    loader = DataLoader(stream_archives(source, seed=0), batch_size=None, num_workers=2)
    assert sorted(item["archive"] for item in loader) == sorted([*FILES, "APE/empty.zip"])


def test_an_archive_that_fails_is_skipped_with_the_reason(source, stub):
    stub.faults["APE/p03.zip"] = ["503"] * 100
    skipped = {item["archive"]: item["skipped"] for item in stream_archives(source) if item["skipped"]}
    assert set(skipped) == {"APE/empty.zip", "APE/p03.zip"} and "did not answer" in skipped["APE/p03.zip"]
