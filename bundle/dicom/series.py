"""A usable CT series found by the index, and its pixels read into a Volume."""

import hashlib
import io
import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydicom.dataset import Dataset, FileDataset

from bundle.dicom.elements import Unusable, decimals, text
from bundle.dicom.geometry import grid_spacing_mm
from bundle.dicom.headers import NotDicom, Slice, read_whole
from bundle.dicom.pixels import Image, compressed_frames, decode, decode_all, is_native, padding_range, pixel_layout
from bundle.dicom.resample import resample
from bundle.dicom.slice_grid import SliceGrid
from bundle.dicom.sources import Sources
from bundle.dicom.volume import Volume
from bundle.errors import BundleError
from bundle.files import digest

KEY_DIGITS = 16
MAX_EXACT_FLOAT32 = 1 << 24


@dataclass(frozen=True, eq=False, repr=False)
class Series:
    """One CT volume in waiting: headers read and checked, pixels not yet.

    Attributes:
        key: 16 hex digits that identify the series without naming it.
        paths: source of each slice in slice order ("archive.zip!/member" in archives); a multi-frame
            object appears once per frame.
        headers: one flat header per slice, without pixel data and private elements.
        affine: (i, j, k, 1) -> LPS mm, float64 (4, 4).
        shape: (H, W, D): columns, rows and slices of the volume, in the order of the affine's axes.
        frames: frame number per slice in its object, None for single-frame objects.
        notes: what a user should know although the series is usable.
        grid: for uneven slices, the regular grid (that of `affine` and `shape`) onto which `load` resamples them;
            `paths`, `headers` and `frames` are those of the slices that are really there.
    """

    key: str
    paths: tuple[str, ...]
    headers: tuple[Dataset, ...]
    affine: np.ndarray
    shape: tuple[int, int, int]
    frames: tuple[int | None, ...]
    notes: tuple[str, ...] = field(default=())
    grid: SliceGrid | None = None

    def __repr__(self) -> str:
        """Key and shape: headers and paths hold identifiers, and a repr ends up in logs."""
        return f"Series({self.key}, shape={self.shape})"

    def load(self) -> Volume:
        """Read the pixels.

        Raises:
            BundleError: when a file cannot be read or decoded, or is no longer what the index saw.
        """
        if self.grid is None:
            return load_volume(self)
        present = replace(self, shape=(*self.shape[:2], len(self.paths)), grid=None)
        return resample(load_volume(present), self.grid)

    @property
    def patient_key(self) -> str:
        """16 hex digits, equal for series of one patient (by ID, else name, else study), without naming them."""
        header = self.headers[0]
        for keyword in ("PatientID", "PatientName", "StudyInstanceUID"):
            value = text(header, keyword)
            if value:
                return digest(keyword, value)[:KEY_DIGITS]
        return digest("series", self.key)[:KEY_DIGITS]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance in mm between neighbours along i, j and between slice planes."""
        return grid_spacing_mm(self.affine)

    @property
    def scanner(self) -> str:
        """Manufacturer and model, "" when the headers do not say."""
        names = [text(self.headers[0], name) for name in ("Manufacturer", "ManufacturerModelName")]
        return " ".join(name for name in names if name)

    @property
    def kernel(self) -> str:
        """Convolution Kernel, several values joined by a blank."""
        return text(self.headers[0], "ConvolutionKernel").replace("\\", " ")

    @property
    def kvp(self) -> float | None:
        """Tube voltage, kV."""
        return _number(self.headers[0], "KVP")

    @property
    def thickness_mm(self) -> float | None:
        """Nominal Slice Thickness, mm."""
        return _number(self.headers[0], "SliceThickness")

    @property
    def body_part(self) -> str:
        """Body Part Examined."""
        return text(self.headers[0], "BodyPartExamined")


def rescale(header: Dataset) -> tuple[float, float]:
    """Rescale Slope and Intercept that make HU of stored values (PS3.3 C.11.1).

    Raises:
        Unusable: when they are missing, or the result would not be HU.
    """
    if "ModalityLUTSequence" in header:
        raise Unusable("values go through a Modality LUT, not RescaleSlope and RescaleIntercept")
    slope = decimals(header, "RescaleSlope", count=1)[0]
    intercept = decimals(header, "RescaleIntercept", count=1)[0]
    if slope == 0:
        raise Unusable("RescaleSlope is 0")
    kind = text(header, "RescaleType").upper()
    if kind and kind != "HU" and not kind.startswith("HOUN"):
        raise Unusable("RescaleType is not HU: the values are no Hounsfield units")
    return slope, intercept


def series_key(series_uid: str, contents: Sequence[str], *, label: str = "") -> str:
    """Key of a series: digest of its UID, else of the sorted digests of its files; `label` tells parts apart."""
    identity = digest(series_uid) if series_uid else digest(*sorted(set(contents)))
    return (digest(identity, label) if label else identity)[:KEY_DIGITS]


def content_digest(source: str, sources: Sources) -> str:
    """SHA-256 of one file's bytes, in hex."""
    with sources.open(source) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def stored_values(image: Slice, dataset: FileDataset) -> np.ndarray:
    """Stored values (rows, columns) of a slice, after a check that its file is still the one of the index.

    Raises:
        Unusable: when it changed, or cannot be decoded.
    """
    return decode(_checked_image(image, dataset, None))


def load_volume(series: Series) -> Volume:
    """Read all slices of `series`; raises BundleError naming the slice that cannot be read."""
    columns, rows, depth = series.shape
    scale = np.array([rescale(header) for header in series.headers])
    kinds = {pixel_layout(header).dtype for header in series.headers}
    kind = kinds.pop() if len(kinds) == 1 else np.dtype(np.int32 if max(k.itemsize for k in kinds) < 4 else np.int64)
    stored = _room((depth, rows, columns), kind)  # slices contiguous, as they come
    array = _room((depth, rows, columns), np.dtype(np.float32))
    pads = any(padding_range(header) is not None for header in series.headers)
    mask = np.empty(stored.shape, dtype=bool) if pads else None
    for k, values in decode_all(_images(series), count=depth):
        if isinstance(values, Unusable):
            raise _slice_error(series, k, values) from values
        stored[k] = values
        _fill_hu(array[k], values, slope=scale[k, 0], intercept=scale[k, 1])
        if kind.itemsize > 2 and np.abs(array[k]).max() > MAX_EXACT_FLOAT32:
            raise _slice_error(series, k, Unusable("values are too large for exact HU (BitsAllocated 32)"))
        if mask is not None:
            mask[k] = _padding(stored[k], series.headers[k])
    return Volume(
        array=array.transpose(2, 1, 0),
        affine=series.affine,
        headers=series.headers,
        stored=stored.transpose(2, 1, 0),
        slope=scale[:, 0].copy(),
        intercept=scale[:, 1].copy(),
        key=series.key,
        padding_mask=None if mask is None else mask.transpose(2, 1, 0),
    )


def _room(shape: tuple[int, int, int], dtype: np.dtype) -> np.ndarray:
    """An array like np.empty's, without the huge pages numpy asks for: making them took longer than the decoding."""
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return np.empty(shape, dtype=dtype)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=flags)
    return np.frombuffer(pages, dtype=dtype).reshape(shape)


def _images(series: Series) -> Iterator[Image]:
    """The slices in order, read but not decoded; a multi-frame object is read once."""
    source, dataset, frames = "", FileDataset("", {}), None
    with Sources() as sources:
        for k, item in enumerate(map(Slice, series.paths, series.frames, series.headers)):
            try:
                if source != item.source:
                    with sources.open(item.source) as stream:
                        # Parsing reads a few bytes a thousand times: twice as fast in memory.
                        dataset = read_whole(stream if item.frame is not None else io.BytesIO(stream.read()))
                    source = item.source
                    frames = None if item.frame is None or is_native(dataset) else compressed_frames(dataset)
                image = _checked_image(item, dataset, frames)
            except (Unusable, NotDicom, OSError, ValueError) as error:
                raise _slice_error(series, k, error) from error
            yield image


def _checked_image(item: Slice, dataset: FileDataset, frames: list[bytes] | None) -> Image:
    if text(dataset, "SOPInstanceUID") != text(item.header, "SOPInstanceUID"):
        raise Unusable("file changed since it was indexed")
    image = Image(dataset, frame=item.frame, frames=frames)
    if image.layout != pixel_layout(item.header):
        raise Unusable("file changed since it was indexed")
    return image


def _fill_hu(hu: np.ndarray, stored: np.ndarray, *, slope: float, intercept: float) -> None:
    """Write HU (rows, columns), float32, of stored values: computed in float64, or in float32 where that is exact."""
    whole = slope.is_integer() and intercept.is_integer()
    if stored.itemsize == 2 and whole and abs(slope) * (1 << 16) + abs(intercept) < MAX_EXACT_FLOAT32:
        np.multiply(stored, np.float32(slope), out=hu, dtype=np.float32)
        hu += np.float32(intercept)
    else:
        hu[...] = stored * slope + intercept


def _slice_error(series: Series, k: int, error: Exception) -> BundleError:
    name = series.paths[k].replace("\\", "/").rsplit("/", 1)[-1]
    reason = error.message if isinstance(error, Unusable) else "file cannot be read any more"
    return BundleError(f"series {series.key}: slice {k} ({name}): {reason}", hint="fetch the series again")


def _padding(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Where a slice (rows, columns) is padded."""
    padding = padding_range(header)
    if padding is None:
        return np.zeros(stored.shape, dtype=bool)
    low, high = sorted((padding[0], padding[0] if padding[1] is None else padding[1]))
    return (stored >= low) & (stored <= high)


def _number(header: Dataset, keyword: str) -> float | None:
    try:
        return decimals(header, keyword, count=1)[0]
    except Unusable:
        return None
