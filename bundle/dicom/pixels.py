"""Stored values of images, exactly: one strict decoder per transfer syntax, checked before it is let loose.

No decoder may guess or fall through to a laxer one: measured, default plug-ins return an image of the right size
from a third of a JPEG-LS stream without a word. Decoders run in processes of their own (`workers`).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
from pydicom.dataset import Dataset, FileDataset

from bundle.dicom import workers
from bundle.dicom.codecs import Codec
from bundle.dicom.elements import Unusable, quiet
from bundle.dicom.layouts import FAMILY_OF, PixelLayout, is_native, pixel_layout, transfer_syntax
from bundle.dicom.pixel_place import UNDEFINED, PixelPlace
from bundle.dicom.streams import check_stream, compressed_frames, frame_of_fragments


class Image:
    """One image with its pixel data in memory: everything checked, nothing decoded yet.

    Attributes:
        layout: of its words.
        stream: the compressed frame; None when it is not compressed.
    """

    def __init__(self, layout: PixelLayout, data: bytes, *, family: str = "", big_endian: bool = False) -> None:
        """Of the bytes of one frame.

        Args:
            layout: by the header.
            data: words, or a compressed frame.
            family: of the compression; "" for words.
            big_endian: order of the bytes in words.

        Raises:
            Unusable: when `data` are truncated, or contradict the header.
        """
        self.layout = layout
        self.family = family
        if family:
            self.stream: bytes | None = data
            check_stream(data, layout, family)
            return
        self.stream = None
        if len(data) < layout.frame_bytes:
            raise Unusable(f"pixel data are truncated: {len(data)} bytes instead of {layout.frame_bytes}")
        kind = f"{'>' if big_endian else '<'}u{layout.allocated // 8}"
        words: np.ndarray = np.frombuffer(data, dtype=kind, count=layout.rows * layout.columns)
        self._words = words.reshape(layout.rows, layout.columns)

    def fill(self, out: np.ndarray) -> None:
        """Write the stored values (rows, columns) of an image that is not compressed."""
        assert self.stream is None, "native"
        self.layout.values(self._words, out)

    def job(self, index: int) -> workers.Job:
        """The work of decoding a compressed image."""
        assert self.stream is not None, "compressed"
        layout = self.layout
        codec = Codec(family=self.family, rows=layout.rows, columns=layout.columns, allocated=layout.allocated)
        return workers.Job(index, self.stream, codec)

    def fill_from(self, decoded: memoryview, out: np.ndarray) -> None:
        """Write the stored values (rows, columns) of what its job gave."""
        count = self.layout.rows * self.layout.columns
        words: np.ndarray = np.frombuffer(decoded, dtype=f"<u{len(decoded) // count}", count=count)
        self.layout.values(words.reshape(self.layout.rows, self.layout.columns), out)


def image_of(dataset: FileDataset, *, frame: int | None = None, frames: list[bytes] | None = None) -> Image:
    """The image of a data set that was read with its pixel data.

    Args:
        dataset: read with its pixel data.
        frame: number of the frame in a multi-frame object, from 0; None when the object is one image.
        frames: the object's compressed frames, when the caller has split them already.

    Raises:
        Unusable: when the pixel data are missing, truncated, or contradict the header.
    """
    layout = pixel_layout(dataset)
    if "PixelData" not in dataset:
        raise Unusable("pixel data are missing")
    if is_native(dataset):
        with quiet():
            data = dataset.PixelData
        size = layout.frame_bytes
        part = data if frame is None else data[frame * size : (frame + 1) * size]
        return Image(layout, part, big_endian=dataset.original_encoding[1] is False)
    frames = compressed_frames(dataset) if frames is None else frames
    if (frame or 0) >= len(frames):
        raise Unusable("pixel data are damaged: frames are missing")
    return Image(layout, frames[frame or 0], family=FAMILY_OF[transfer_syntax(dataset)])


def image_at(stream: BinaryIO, header: Dataset, place: PixelPlace, *, frame: int | None = None) -> Image:
    """The image of a file whose header and place of pixel data are known.

    Args:
        stream: of the file, which has not changed since.
        header: of the image.
        place: of the pixel data; of a compressed object only when it holds one frame.
        frame: as for `image_of`.

    Raises:
        Unusable: when the pixel data are truncated, or contradict the header.
    """
    layout = pixel_layout(header)
    if place.length == UNDEFINED:
        assert frame is None, "frames are told apart by a parser"
        stream.seek(place.start)
        return Image(layout, frame_of_fragments(stream.read()), family=FAMILY_OF[transfer_syntax(header)])
    stream.seek(place.start + (frame or 0) * layout.frame_bytes)
    return Image(layout, stream.read(layout.frame_bytes), big_endian=place.big_endian)


def decode(image: Image) -> np.ndarray:
    """Stored values (rows, columns) of one image, without the bits that are not theirs.

    Raises:
        Unusable: when it cannot be decoded.
    """
    values = np.empty((image.layout.rows, image.layout.columns), image.layout.dtype)
    for _, problem in decode_all([image], [values]):
        if problem is not None:
            raise problem
    return values


def decode_all(
    images: Iterable[Image], slots: Sequence[np.ndarray] | np.ndarray
) -> Iterator[tuple[int, Unusable | None]]:
    """Write the stored values of images; yields each one's number, and what is wrong with it, as they are ready.

    Args:
        images: taken one by one, never more at a time than there are workers and one.
        slots: for each image, where its values go: (rows, columns), of a type that holds them.
    """
    numbered = enumerate(images)
    waiting: dict[int, Image] = {}
    native: list[tuple[int, Image]] = []  # one at most: it ends the workers' turn

    def jobs() -> Iterator[workers.Job]:
        for index, image in numbered:
            if image.stream is None:
                native.append((index, image))
                return
            waiting[index] = image
            yield image.job(index)

    while True:
        for outcome in workers.run(jobs(), count=len(slots)):
            index = outcome.job.index
            image = waiting.pop(index)
            if outcome.words is not None:
                image.fill_from(outcome.words, slots[index])
            yield index, Unusable(outcome.problem) if outcome.words is None else None
        if not native:
            return
        index, image = native.pop()
        image.fill(slots[index])
        yield index, None
