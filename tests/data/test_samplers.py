import pytest

from bundle.data.samplers import ResumableBatchSampler, ShardSampler, in_order


def flat(batches):
    return [item for batch in batches for item in batch]


def test_an_epoch_has_no_repeats_and_all_batches():
    sampler = ResumableBatchSampler(23, batch_size=4)
    batches = list(sampler)
    assert len(sampler) == len(batches) == 5
    assert flat(batches) == [(0, index) for index in range(20)]


def test_epoch_goes_with_every_index():
    sampler = ResumableBatchSampler(8, batch_size=4)
    sampler.epoch = 7
    assert {epoch for epoch, _ in flat(sampler)} == {7}


@pytest.mark.parametrize("skip", range(6))
def test_skip_goes_on_where_it_stopped(skip):
    sampler = ResumableBatchSampler(20, batch_size=4)
    everything = list(sampler)
    sampler.skip = skip
    assert list(sampler) == everything[skip:]
    assert len(sampler) == 5  # the trainer's epoch stays as long as it was


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_partition_the_global_batch(world):
    alone = list(ResumableBatchSampler(48, batch_size=2 * world))
    ranks = [list(ResumableBatchSampler(48, batch_size=2, rank=rank, world_size=world)) for rank in range(world)]
    assert {len(rank) for rank in ranks} == {len(alone)}
    for step, batch in enumerate(alone):
        assert flat([rank[step] for rank in ranks]) == batch


def test_an_epoch_without_a_batch():
    with pytest.raises(ValueError, match="no batch of 4 on 2 processes"):
        ResumableBatchSampler(7, batch_size=4, world_size=2)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_shards_have_every_sample_once_and_the_same_length(length, world):
    """Also where there are fewer samples than ranks: nobody may be without a step that the others take."""
    shards = [list(ShardSampler(range(length), rank=rank, world_size=world)) for rank in range(world)]
    assert {len(shard) for shard in shards} == {len(ShardSampler(range(length), world_size=world))}
    assert in_order(shards, length) == list(range(length))


def test_nothing_to_share():
    assert list(ShardSampler([], rank=1, world_size=2)) == [] and in_order([[], []], 0) == []
