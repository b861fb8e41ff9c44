"""Batches whose content depends on (epoch, index) alone, so that a resumed run goes on with the next one."""

from collections.abc import Iterator

from torch.utils.data import Sampler


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
            first = (step * self.world_size + self.rank) * self.batch_size
            yield [(epoch, index) for index in range(first, first + self.batch_size)]
