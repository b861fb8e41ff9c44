"""A usable CT series found by the index, and its pixels read into a Volume."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydicom.dataset import Dataset, FileDataset

from bundle.dicom.elements import Unusable, decimals, text
from bundle.dicom.geometry import grid_spacing_mm
from bundle.dicom.headers import NotDicom, read_whole
from bundle.dicom.hounsfield import MAX_EXACT_FLOAT32, hu_range, rescale
from bundle.dicom.layouts import is_native, padding_range, pixel_layout
from bundle.dicom.pixel_place import PixelPlace
from bundle.dicom.pixels import Image, decode, decode_all, image_at, image_of
from bundle.dicom.resample import resample
from bundle.dicom.slice_grid import SliceGrid
from bundle.dicom.slices import Slice
from bundle.dicom.sources import Sources, identity
from bundle.dicom.streams import compressed_frames
from bundle.dicom.volume import Volume
from bundle.errors import BundleError
from bundle.files import digest
from bundle.pages import Pages, let_go, plain_pages

KEY_DIGITS = 16


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
        places: where the pixel data lie in each slice's source, as the index saw it.
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
    places: tuple[PixelPlace | None, ...]
    notes: tuple[str, ...] = field(default=())
    grid: SliceGrid | None = None

    def __repr__(self) -> str:
        """Key and shape: headers and paths hold identifiers, and a repr ends up in logs."""
        return f"Series({self.key}, shape={self.shape})"

    def load(self, pages: Pages = plain_pages) -> Volume:
        """Read the pixels.

        Args:
            pages: makes the array for the stored values, in memory or on disk.

        Raises:
            BundleError: when a file cannot be read or decoded, or is no longer what the index saw.
        """
        if self.grid is None:
            return load_volume(self, pages)
        present = replace(self, shape=(*self.shape[:2], len(self.paths)), grid=None)
        return resample(load_volume(present, pages), self.grid, pages)

    @property
    def slices(self) -> Iterator[Slice]:
        """The slices that are really there, in order."""
        return map(Slice, self.paths, self.frames, self.headers, self.places)

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


def series_key(series_uid: str, contents: Sequence[str], *, label: str = "") -> str:
    """Key of a series: digest of its UID, else of the sorted digests of its files; `label` tells parts apart."""
    identity = digest(series_uid) if series_uid else digest(*sorted(set(contents)))
    return (digest(identity, label) if label else identity)[:KEY_DIGITS]


def content_digest(source: str, sources: Sources) -> str:
    """SHA-256 of one file's bytes, in hex."""
    with sources.open(source) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def stored_values(image: Slice, sources: Sources) -> np.ndarray:
    """Stored values (rows, columns) of a slice, after a check that its file is still the one of the index.

    Raises:
        NotDicom, OSError, Unusable: when it changed, or cannot be read or decoded.
    """
    return decode(next(_images([image], sources)))


def load_volume(series: Series, pages: Pages = plain_pages) -> Volume:
    """Read all slices of `series` into `pages`; raises BundleError naming the slice that cannot be read."""
    columns, rows, depth = series.shape
    scale = np.array([rescale(header) for header in series.headers])
    kinds = {pixel_layout(header).dtype for header in series.headers}
    kind = kinds.pop() if len(kinds) == 1 else np.dtype(np.int32 if max(k.itemsize for k in kinds) < 4 else np.int64)
    stored = pages((depth, rows, columns), kind)  # slices contiguous, as they come
    with Sources() as sources:
        for k, problem in decode_all(_named(series, sources), stored):
            if problem is None and kind.itemsize > 2:
                ends = hu_range(stored[k], slope=scale[k, 0], intercept=scale[k, 1])
                if max(map(abs, ends)) > MAX_EXACT_FLOAT32:
                    problem = Unusable("values are too large for exact HU (BitsAllocated 32)")
            if problem is not None:
                raise _slice_error(series, k, problem) from problem
            let_go(stored[k])
    return Volume(
        stored=stored.transpose(2, 1, 0),
        affine=series.affine,
        headers=series.headers,
        slope=scale[:, 0].copy(),
        intercept=scale[:, 1].copy(),
        key=series.key,
        padding=tuple(_padding(header) for header in series.headers),
    )


def _named(series: Series, sources: Sources) -> Iterator[Image]:
    """The slices in order, read but not decoded; raises BundleError naming the one that cannot be read."""
    images = _images(series.slices, sources)
    for k in range(len(series.paths)):
        try:
            image = next(images)
        except (Unusable, NotDicom, OSError, ValueError) as error:
            raise _slice_error(series, k, error) from error
        yield image


def _images(slices: Iterable[Slice], sources: Sources) -> Iterator[Image]:
    """Slices read but not decoded: straight from their place in an unchanged file, else by parsing the file anew."""
    source, dataset, frames = "", FileDataset("", {}), None
    for item in slices:
        image = None
        if source != item.source:
            with sources.open(item.source) as stream:
                if item.place is not None and item.place.identity == identity(stream):
                    image = image_at(stream, item.header, item.place, frame=item.frame)
                else:  # parsing reads a few bytes a thousand times: twice as fast in memory
                    dataset = read_whole(stream if item.frame is not None else io.BytesIO(stream.read()))
                    source = item.source
                    frames = None if item.frame is None or is_native(dataset) else compressed_frames(dataset)
        yield _unchanged_image(item, dataset, frames) if image is None else image


def _unchanged_image(item: Slice, dataset: FileDataset, frames: list[bytes] | None) -> Image:
    """The image of a data set that was parsed anew, if it still says what counts as the index saw it."""
    same = text(dataset, "SOPInstanceUID") == text(item.header, "SOPInstanceUID")
    if same and item.frame is None:
        same = rescale(dataset) == rescale(item.header)
    if not same or pixel_layout(dataset) != pixel_layout(item.header):
        raise Unusable("file changed since it was indexed")
    return image_of(dataset, frame=item.frame, frames=frames)


def _slice_error(series: Series, k: int, error: Exception) -> BundleError:
    name = series.paths[k].replace("\\", "/").rsplit("/", 1)[-1]
    reason = error.message if isinstance(error, Unusable) else "file cannot be read any more"
    return BundleError(f"series {series.key}: slice {k} ({name}): {reason}", hint="fetch the series again")


def _padding(header: Dataset) -> tuple[int, int] | None:
    """Lowest and highest stored value of padding."""
    padding = padding_range(header)
    if padding is None:
        return None
    low, high = sorted((padding[0], padding[0] if padding[1] is None else padding[1]))
    return low, high


def _number(header: Dataset, keyword: str) -> float | None:
    try:
        return decimals(header, keyword, count=1)[0]
    except Unusable:
        return None
