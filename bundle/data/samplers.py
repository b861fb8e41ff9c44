"""Batches whose content depends on (epoch, index) alone, so that a resumed run goes on with the next one."""

from collections.abc import Iterator, Sized
from typing import TypeVar

from torch.utils.data import Sampler

Value = TypeVar("Value")


class ResumableBatchSampler(Sampler[list[tuple[int, int]]]):
    """Gives batches of (epoch, index); set `epoch` at an epoch's start and `skip` to go on within one.

    Args:
        length: samples per epoch over all ranks.
        batch_size: samples per batch and rank.
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(self, length: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.steps = length // (batch_size * world_size)
        if self.steps < 1:
            raise ValueError(f"an epoch of {length} samples has no batch of {batch_size} on {world_size} processes")
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the remaining batches of the epoch; ranks take neighbouring blocks of each global batch."""
        epoch = self.epoch
        for step in range(self.skip, self.steps):
            yield [(epoch, index) for index in self.indices(step)]

    def indices(self, step: int) -> range:
        """The samples of this rank's batch `step` of an epoch."""
        first = (step * self.world_size + self.rank) * self.batch_size
        return range(first, first + self.batch_size)


class ShardSampler(Sampler[int]):
    """Gives rank r every `world_size`-th sample, as many on each rank.

    Where they do not come out even, the last ranks get samples again, behind all of their own: each rank then takes
    part in every step, and what is counted twice can be told by its place (see `in_order`).

    Args:
        data: what has the samples.
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(self, data: Sized, *, rank: int = 0, world_size: int = 1) -> None:
        self.data = data
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return -(-len(self.data) // self.world_size)

    def __iter__(self) -> Iterator[int]:
        """Yield indices of this rank."""
        for place in range(len(self)):
            yield (place * self.world_size + self.rank) % len(self.data)


def in_order(shards: list[list[Value]], length: int) -> list[Value]:
    """Join what the ranks of a ShardSampler found, in the order of the samples, repeats left out."""
    return [value for place in zip(*shards, strict=True) for value in place][:length]
