"""GroupNorm whose statistics are those of a whole volume, while the network sees one tile of it at a time.

GroupNorm (Wu and He 2018, arXiv:1803.08494) divides by the spread of the window that it is given: two tiles with
different contents change what they share differently, which is a seam. Here a first pass over tiles gathers mean and
variance of each group at each call, and a second one normalises all tiles by them: every tile goes through the same
function of its voxels. What the first pass finds deep in the network still went through norms of single windows.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn import functional


class SharedNorms:
    """GroupNorms of a network and what was gathered for them; false where there are none.

    A norm that runs several times in one pass (a denoiser, once for each step) has statistics for each of its calls.
    Each pass has to stand in a `with` block of its own, which counts the calls from the start; two at a time, from two
    threads, would count each other's. All that is gathered comes before what it is applied to, from one window a pass:
    where a network makes several rows of it (two latents that it decodes at once), each row has its own statistics.

    Args:
        norms: of one network (`Restorer.window_norms`).
    """

    def __init__(self, norms: Sequence[nn.GroupNorm] = ()) -> None:
        self._norms = norms
        # By norm and call: number of values, their sum, and the sum of their squares, (3, rows, groups) float64.
        self._sums: dict[tuple[int, int], torch.Tensor] = {}
        # The same to mean and variance of each channel, (rows, 2, C) float32 where the network runs.
        self._found: dict[tuple[int, int], torch.Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._norms)

    def gathering(self) -> AbstractContextManager[None]:
        """Within it norms work as they are and take in what they see, of one window (a batch of 1)."""
        return self._instead(self._gathered)

    def applied(self) -> AbstractContextManager[None]:
        """Within it norms divide by what was gathered, windows of any batch; as they are where nothing was."""
        return self._instead(self._normalised) if self._sums else nullcontext()

    def _gathered(self, norm: nn.GroupNorm, key: tuple[int, int], x: torch.Tensor) -> torch.Tensor:
        values = x.detach().float().reshape(x.shape[0], norm.num_groups, -1)
        variance, mean = torch.var_mean(values, dim=2, correction=0)
        mean, variance = mean.double().cpu(), variance.double().cpu()
        sums = torch.stack([torch.ones_like(mean), mean, variance + mean**2]) * values.shape[2]
        self._sums[key] = self._sums.get(key, 0) + sums
        return nn.GroupNorm.forward(norm, x)

    def _normalised(self, norm: nn.GroupNorm, key: tuple[int, int], x: torch.Tensor) -> torch.Tensor:
        if key not in self._found:
            count, total, squares = self._sums[key]
            mean = total / count
            statistics = torch.stack([mean, (squares / count - mean**2).clamp_min(0)], dim=1)
            each = norm.num_channels // norm.num_groups
            self._found[key] = statistics.repeat_interleave(each, dim=2).float().to(x.device)
        weight, bias = (None if one is None else one.float() for one in (norm.weight, norm.bias))
        # Batch normalisation in use takes no statistics from what it is given.
        parts = [
            functional.batch_norm(part, mean, variance, weight, bias, training=False, eps=norm.eps)
            for part, (mean, variance) in zip(x.chunk(len(self._found[key])), self._found[key], strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @contextmanager
    def _instead(
        self, forward: Callable[[nn.GroupNorm, tuple[int, int], torch.Tensor], torch.Tensor]
    ) -> Iterator[None]:
        for number, norm in enumerate(self._norms):
            setattr(norm, "forward", _counting(forward, norm, number))  # noqa: B010 (a method, to the type checker)
        try:
            yield
        finally:
            for norm in self._norms:
                delattr(norm, "forward")


def _counting(
    forward: Callable[[nn.GroupNorm, tuple[int, int], torch.Tensor], torch.Tensor], norm: nn.GroupNorm, number: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    calls = itertools.count()
    return lambda x: forward(norm, (number, next(calls)), x)
