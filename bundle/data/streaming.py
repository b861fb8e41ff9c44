"""The archives of a hub data set as a stream (`datasets.IterableDataset`) that goes on exactly where it stood.

The order is a permutation by (seed, epoch) of all archives. A shuffle buffer is not used: on a resume it loses what it
holds. So (epoch, number of archives taken) is the whole position, and `state_dict` / `load_state_dict` keep it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from datasets import IterableDataset

from bundle.data.hub import Archive, HubRepository, Unreachable


def epoch_order(count: int, *, seed: int, epoch: int) -> list[int]:
    """A permutation of range(count), another one for each (seed, epoch)."""
    return [int(number) for number in np.random.default_rng([seed, epoch]).permutation(count)]


def shard(order: Sequence[int], *, rank: int = 0, world_size: int = 1) -> list[int]:
    """Every `world_size`-th of `order`, as many for each rank: some are taken twice where it does not come out even."""
    length = -(-len(order) // world_size)
    return [order[(place * world_size + rank) % len(order)] for place in range(length)]


def stream_archives(
    repository: HubRepository,
    *,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    archives: Sequence[Archive] | None = None,
) -> IterableDataset:
    """Stream archives of a repository; each is fetched when it is its turn.

    Items are {'archive': path in the repository, 'category', 'file': local ZIP or '', 'skipped': why there is none}.
    A data loader's workers share the archives of their rank.

    Args:
        repository: where they lie.
        seed: of the order.
        epoch: of the order.
        rank: number of this process.
        world_size: number of processes.
        archives: only these; None is all.
    """
    chosen = list(repository.archives if archives is None else archives)
    order = shard(epoch_order(len(chosen), seed=seed, epoch=epoch), rank=rank, world_size=world_size)
    # A list is what datasets splits among workers and counts positions in.
    return IterableDataset.from_generator(
        _fetched, gen_kwargs={"archives": [chosen[number] for number in order], "repository": repository}
    )


def _fetched(archives: list[Archive], repository: HubRepository) -> Iterator[dict[str, Any]]:
    for archive in archives:
        item = {"archive": archive.path, "category": archive.category, "file": "", "skipped": ""}
        if archive.size == 0:
            yield item | {"skipped": "archive is empty"}
            continue
        try:
            yield item | {"file": str(repository.fetch(archive))}
        except Unreachable as error:
            yield item | {"skipped": error.message}
