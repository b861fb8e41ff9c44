"""Slices that flow through a network a few at a time, with the result of the whole volume.

Tiles repeat slices, and still see too little around their borders. Here each convolution keeps the last slices that it
was given and goes on from them when the next come, as streaming networks for audio do (Rybakov et al. 2020,
arXiv:2005.06720): no slice is computed twice, and nothing differs from the whole volume. A convolution that looks one
slice ahead answers one slice late, and where branches meet the early one waits. The network's code stays as it is: a
torch function mode follows the slices through it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.overrides import TorchFunctionMode

# Where stride and padding stand among the arguments.
_CONVOLUTIONS = {
    "conv3d": (3, 4),
    "mkldnn_convolution": (4, 3),
    "_convolution_pointwise": (4, 3),
    "conv_transpose3d": (3, 4),
}
_REORDERING = {"permute", "movedim", "__getitem__"}
_RESHAPING = {"flatten", "unflatten"}
_ACROSS = {"all", "any"}  # the axis `dim`
# What works on each slice by itself, and leaves the order of the axes as it is.
_SLICEWISE = {
    *("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__pow__", "__neg__"),
    *("add", "sub", "rsub", "mul", "div", "pow", "square", "sqrt", "exp", "log", "clamp", "clamp_min"),
    *("silu", "relu", "leaky_relu", "layer_norm", "avg_pool3d", "interpolate", "pad", "cat", "chunk"),
    *(*_ACROSS, "each_slice", "le", "lt", "isnan", "abs", "where"),
    *("to", "float", "contiguous", "clone", "expand", "expand_as", "zeros_like", "flip"),
}
# Where torch wants a slice.
_NOT_OF_NOTHING = {*_CONVOLUTIONS, "each_slice", "avg_pool3d", "interpolate", "pad", "layer_norm"}
_DESCRIBING = {"__get__", "__len__", "dim", "numel", "size", "stride", "is_contiguous"}


class NotStreamable(Exception):
    """A network does what cannot be done slice by slice; the message says what."""


@dataclass(frozen=True)
class _Place:
    """Where the slices of a tensor lie: along which axis, and the number of the first."""

    axis: int
    first: int


class SliceStream(TorchFunctionMode):
    """The way of one volume through a network: `with stream:` around each pass, which is given the next slices.

    A pass gives the slices that are finished, none at first; passes without new slices bring out the last ones.

    Args:
        depth: slices of the volume.
        most: most slices that a convolution computes in a pass; memory goes with it.
    """

    def __init__(self, *, depth: int, most: int) -> None:
        super().__init__()
        self._depth, self._most = depth, most
        self._held: dict[int, torch.Tensor] = {}  # the last slices that a convolution was given, by operation
        self._waiting: dict[tuple[int, int], list[torch.Tensor]] = {}  # in order; by operation and number of its input
        self._given: dict[int, int] = {}  # slices that an operation has given so far
        self._operation = 0

    def __enter__(self) -> "SliceStream":
        self._operation = 0
        super().__enter__()
        return self

    @staticmethod
    def mark(x: torch.Tensor, *, axis: int, first: int) -> torch.Tensor:
        """Return x, known from now on as slices from number `first` along `axis`."""
        x._slices = _Place(axis % x.ndim, first)  # type: ignore[attr-defined]
        return x

    @staticmethod
    def marked(x: torch.Tensor) -> bool:
        """Whether x is known as some of a volume's slices."""
        return hasattr(x, "_slices")

    @staticmethod
    def first(x: torch.Tensor) -> int:
        """Number of the first slice of a marked tensor, or of what was made of one."""
        return _place(x).first

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Follow the slices through one operation."""
        kwargs, name = kwargs or {}, func.__name__
        if next(_streamed(kwargs.values()), None) is not None:
            raise NotStreamable(f"{name} is given slices by keyword")
        if name in _DESCRIBING or next(_streamed(args[:1] if name == "to" else args), None) is None:
            return func(*args, **kwargs)
        if name in _CONVOLUTIONS and args[1].shape[2] > 1:
            return self._convolved(func, args, kwargs)
        if name not in _SLICEWISE | _REORDERING | _RESHAPING and name not in _CONVOLUTIONS:
            raise NotStreamable(f"{name} may mix slices")
        args = self._same_slices(args)
        x = max(_streamed(args), key=torch.Tensor.dim)
        place = _place(x)
        _check_slicewise(name, args, kwargs, x.ndim, place.axis)
        count, axis = x.shape[place.axis], place.axis - x.ndim
        if name in _REORDERING:
            moved = func(_probe(x.ndim, place.axis), *args[1:], **kwargs)
            if 2 not in moved.shape:
                raise NotStreamable(f"{name} takes some of the slices")
            axis = moved.shape.index(2) - moved.ndim
        if name in _RESHAPING:
            axis = place.axis  # all that changes lies behind it
        dummy = count == 0 and name in _NOT_OF_NOTHING
        results = _of_nothing(func, args, kwargs, axis) if dummy else func(*args, **kwargs)
        for result in results if isinstance(results, tuple) else [results]:
            if result.shape[axis] != count:
                raise NotStreamable(f"{name} changes the number of slices")
            self.mark(result, axis=axis, first=place.first)
        return results

    def _convolved(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        """What the slices so far are enough for; zeros lie before the first slice and after the last."""
        operation, given = self._begin()
        x, weight = args[:2]
        stride, padding = (args[n] for n in _CONVOLUTIONS[func.__name__])
        half = weight.shape[2] // 2
        along = (_along_slices(stride), _along_slices(padding), weight.shape[2] % 2)
        if kwargs or _place(x).axis != 2 or along != (1, half, 1):
            raise NotStreamable(f"a convolution with stride {along[0]} and padding {along[1]} along slices")
        edge = x.new_zeros(*x.shape[:2], half, *x.shape[3:]).contiguous(memory_format=_order(x))
        held = self._held.get(operation, edge)
        known = given - half + held.shape[2] + x.shape[2]  # one past the last slice that is here, zeros included
        seen = _joined([held, x, edge] if known == self._depth else [held, x], 2)
        count = max(min(seen.shape[2] - 2 * half, self._most), 0)
        rest, room = seen[:, :, count:], self._held.get(operation)
        if room is None or room.shape != rest.shape:
            room = torch.empty_like(rest, memory_format=_order(x))
        # Where those of the pass before lay; a view would hold all that the convolution sees.
        self._held[operation] = room.copy_(rest) if x.shape[2] else rest
        self._given[operation] = given + count
        transposed = func.__name__ == "conv_transpose3d"
        if count == 0:  # there is only a shape to give
            plane = _plane(x, weight, stride, padding, args[5] if transposed else None)
            result = x.new_zeros(x.shape[0], weight.shape[1 if transposed else 0], 0, *plane)
        else:
            arguments = [seen[:, :, : count + 2 * half], *args[1:]]
            arguments[_CONVOLUTIONS[func.__name__][1]] = (2 * half if transposed else 0, *padding[1:])
            result = func(*arguments)
        return self.mark(result, axis=2, first=given)

    def _same_slices(self, args: Any) -> Any:
        """The arguments, cut to the slices that all of them have; the rest waits."""
        streamed = list(_streamed(args))
        if len(streamed) == 1:
            return args
        operation, given = self._begin()
        axes = [_place(x).axis for x in streamed]
        queues = [self._waiting.setdefault((operation, number), []) for number in range(len(streamed))]
        for queue, x, axis in zip(queues, streamed, axes, strict=True):
            if x.shape[axis] or not queue:
                queue.append(x)
        end = min(sum(x.shape[axis] for x in queue) for queue, axis in zip(queues, axes, strict=True))
        self._given[operation] = given + end
        taken = iter([_taken(queue, axis, end) for queue, axis in zip(queues, axes, strict=True)])
        places = iter(axes)
        return _exchanged(args, lambda _: self.mark(next(taken), axis=next(places), first=given))

    def _begin(self) -> tuple[int, int]:
        """Number of the operation in this pass, and how many slices it has given."""
        self._operation += 1
        return self._operation, self._given.get(self._operation, 0)


def _place(x: torch.Tensor) -> _Place:
    return cast(_Place, x._slices)  # type: ignore[attr-defined]


def _streamed(args: Any) -> Iterator[torch.Tensor]:
    """The marked tensors among arguments, and in a list of them."""
    for value in args:
        if isinstance(value, torch.Tensor) and SliceStream.marked(value):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _streamed(value)


def _exchanged(args: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same arguments with every marked tensor exchanged."""
    # No function inside that calls itself: it would be a cycle, and hold all these tensors until it is collected.
    return type(args)(_exchanged_one(value, change) for value in args)


def _exchanged_one(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor) and SliceStream.marked(value):
        return change(value)
    return _exchanged(value, change) if isinstance(value, (list, tuple)) else value


def _plane(x: torch.Tensor, weight: torch.Tensor, stride: Any, padding: Any, output_padding: Any | None) -> list[int]:
    """Rows and columns of a convolution's result; of a transposed one's where `output_padding` is given."""
    if output_padding is None:
        sizes = zip(x.shape[3:], weight.shape[3:], stride[1:], padding[1:], strict=True)
        return [(size + 2 * border - kernel) // step + 1 for size, kernel, step, border in sizes]
    more = zip(x.shape[3:], weight.shape[3:], stride[1:], padding[1:], output_padding[1:], strict=True)
    return [(size - 1) * step - 2 * border + kernel + extra for size, kernel, step, border, extra in more]


def _along_slices(value: Any) -> int:
    """Of a setting of a convolution on (B, C, D, H, W), one number or three."""
    return int(value[0] if isinstance(value, (list, tuple)) else value)


def _order(x: torch.Tensor) -> torch.memory_format:
    """How x (B, C, D, H, W) lies in memory: two orders in one operation make it several times slower."""
    return torch.channels_last_3d if x.stride(1) < x.stride(4) else torch.contiguous_format


def _taken(queue: list[torch.Tensor], axis: int, count: int) -> torch.Tensor:
    """Take the first slices of a queue out of it; what stays holds no memory but its own."""
    parts: list[torch.Tensor] = []
    missing = count
    while missing and queue:
        first = queue.pop(0)
        size = min(first.shape[axis], missing)
        parts.append(first.narrow(axis, 0, size))
        missing -= size
        if size < first.shape[axis]:
            queue.insert(0, first.narrow(axis, size, first.shape[axis] - size))
    if queue and queue[-1].untyped_storage().nbytes() > queue[-1].numel() * queue[-1].element_size():
        queue[-1] = queue[-1].clone()
    return _joined(parts, axis) if parts else queue[0].narrow(axis, 0, 0)


def _joined(parts: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
    """The slices of several tensors; those without any would change the others' order in memory."""
    some = [part for part in parts if part.shape[axis]] or list(parts[:1])
    return some[0] if len(some) == 1 else torch.cat(some, dim=axis)


def _probe(dimensions: int, axis: int) -> torch.Tensor:
    """A tensor whose `axis` can be told from the others by its size of 2."""
    return torch.empty([2 if n == axis else 1 for n in range(dimensions)])


def _check_slicewise(name: str, args: Any, kwargs: Mapping[str, Any], dimensions: int, axis: int) -> None:
    """Refuse what these operations can, but must not, do along slices."""
    if name in _ACROSS and kwargs.get("dim", axis) % dimensions == axis:
        raise NotStreamable(f"{name} of slices")
    if name == "layer_norm" and axis >= dimensions - len(args[1]):
        raise NotStreamable("a norm over slices")
    if name == "each_slice" and axis != 2:
        raise NotStreamable("each_slice of what are no slices")
    if name == "flip" and axis in {
        n % dimensions for n in (args[1] if isinstance(args[1], (list, tuple)) else args[1:])
    }:
        raise NotStreamable("slices in the opposite order")
    if name in _RESHAPING and (len(args) < 2 or args[1] <= axis):
        raise NotStreamable(f"{name} of slices")
    if name == "avg_pool3d" and (axis < 2 or args[1][axis - 2] != 1):
        raise NotStreamable("an average over slices")


def _of_nothing(func: Callable[..., Any], args: Any, kwargs: dict[str, Any], axis: int) -> Any:
    """What an operation makes of no slices, by way of one."""

    def one_slice(x: torch.Tensor) -> torch.Tensor:
        place = _place(x)
        return x.new_zeros([1 if n == place.axis else size for n, size in enumerate(x.shape)])

    results = func(*_exchanged(args, one_slice), **kwargs)
    if isinstance(results, tuple):
        return tuple(result.narrow(axis, 0, 0) for result in results)
    return results.narrow(axis, 0, 0)
