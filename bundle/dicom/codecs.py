"""Compressed frames to words, and the process that does it: the only code that hands foreign bytes to a decoder.

It imports no pydicom and sees no file: a process that runs `serve` gets one frame's bytes and a place for its words,
so that it starts in a tenth of a second and can be killed without loss.
"""

import contextlib
import ctypes
import importlib
import mmap
import os
import signal
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

JPEG, JPEG_LS, JPEG_2000, RLE = "JPEG", "JPEG-LS", "JPEG 2000", "RLE"
_MODULES = {JPEG: "gdcm", JPEG_LS: "_CharLS", JPEG_2000: "openjpeg", RLE: "rle"}
SECONDS = 10.0  # a 4096 x 4096 frame in the slowest codec takes about 2
WORKING_BYTES = 256 << 20  # of a decoder, beside a few copies of the frame
REPLY = struct.Struct("<q")
DAMAGED = -1
_COMPLAINT = b"Corrupt JPEG data"
_REQUEST = struct.Struct("<12sIIIQQ")
_REQUEST_BYTES = _REQUEST.size


@dataclass(frozen=True, kw_only=True)
class Codec:
    """What a decoder has to be told of a frame: the family, and the matrix the header promises."""

    family: str
    rows: int
    columns: int
    allocated: int

    @property
    def largest_bytes(self) -> int:
        """Of the frame's words, at most."""
        return self.rows * self.columns * 4


def decompress(stream: bytes, codec: Codec) -> bytes | bytearray:
    """Words of one frame, little endian, as the one strict decoder of its family gives them.

    In this very process: a hostile stream may crash or hang it. `workers` keeps that away.
    """
    if codec.family == JPEG_LS:
        from _CharLS import decode_from_buffer  # what `jpeg_ls` exports, without the slower half of its imports

        words: bytearray = decode_from_buffer(stream)
        return words
    if codec.family == JPEG_2000:
        import openjpeg

        return openjpeg.decode_pixel_data(stream, version=2)  # type: ignore[return-value]
    if codec.family == RLE:
        import rle

        sizes = {"rows": codec.rows, "columns": codec.columns, "bits_allocated": codec.allocated}
        return rle.utils.decode_pixel_data(stream, version=2, **sizes)  # type: ignore[return-value,arg-type]
    assert codec.family == JPEG, codec.family
    return _jpeg_lossless(stream, codec)


def _jpeg_lossless(stream: bytes, codec: Codec) -> bytes:
    import gdcm

    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    decoder = gdcm.JPEGCodec()  # the frame header says which predictor: one decoder serves both syntaxes
    decoder.SetDimensions((codec.columns, codec.rows, 1))
    monochrome = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    decoder.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(monochrome))
    decoder.SetPixelFormat(gdcm.PixelFormat(1, codec.allocated, codec.allocated, codec.allocated - 1, 0))
    decoded = gdcm.DataElement()
    if not decoder.Decode(element, decoded):
        raise ValueError("damaged")
    words = decoded.GetByteValue()
    # Its binding hands out bytes as text only, encoded to and fro: as long again as the decoding itself.
    return ctypes.string_at(int(words.GetVoidPointer()), int(str(words.GetLength())))


def request(codec: Codec, *, length: int, capacity: int) -> bytes:
    """Message to a worker: a stream of `length` bytes lies in the shared memory of `capacity` bytes."""
    name = codec.family.encode()
    return _REQUEST.pack(name, codec.rows, codec.columns, codec.allocated, length, capacity)


def serve(channel_descriptor: int, memory_descriptor: int, family: str = "") -> None:
    """Decode frame after frame until the other end of the channel closes.

    A stream is replaced in the shared memory by its words; the reply is their number of bytes, or `DAMAGED`.
    The decoder of `family` is loaded before the first stream comes.
    """
    if family:
        with contextlib.suppress(ImportError):
            importlib.import_module(_MODULES[family])
    _forbid_files()
    complaints = _caught_stderr()
    at_start = _address_space()
    channel = socket.socket(fileno=channel_descriptor)
    shared = mmap.mmap(memory_descriptor, 1)
    while len(message := channel.recv(_REQUEST_BYTES, socket.MSG_WAITALL)) == _REQUEST_BYTES:
        name, rows, columns, allocated, length, capacity = _REQUEST.unpack(message)
        codec = Codec(family=name.rstrip(b"\0").decode(), rows=rows, columns=columns, allocated=allocated)
        if len(shared) < capacity:
            shared.close()
            shared = mmap.mmap(memory_descriptor, capacity)
        _limit_memory(at_start + WORKING_BYTES + capacity + 8 * codec.largest_bytes + 4 * length)
        _drained(complaints)  # of a frame that failed
        signal.setitimer(signal.ITIMER_REAL, SECONDS + 5)  # if nobody is left who would stop it
        try:
            words = decompress(shared[:length], codec)
            if len(words) <= capacity:
                shared[: len(words)] = words
            size = DAMAGED if _COMPLAINT in _drained(complaints) else len(words)
        except BaseException:  # each decoder has its own kinds; a panic in Rust is no Exception
            size = DAMAGED
        signal.setitimer(signal.ITIMER_REAL, 0)
        channel.sendall(REPLY.pack(size))


def _caught_stderr() -> int:
    """Send stderr into a pipe that never blocks; returns its other end.

    libjpeg fills what a cut scan lacks, and says so there only.
    """
    read, write = os.pipe()
    for descriptor in (read, write):
        os.set_blocking(descriptor, False)
    os.dup2(write, 2)
    os.close(write)
    return read


def _drained(descriptor: int) -> bytes:
    """What was written to stderr since the last call."""
    said = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(descriptor, 1 << 16):
            said += part
    return said


def _forbid_files() -> None:
    """No core dumps (they would hold a patient's pixels), no writing to files."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _address_space() -> int:
    """Bytes of address space of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def _limit_memory(limit: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def command(channel: int, memory: int, family: str = "") -> list[str]:
    """Command line of a process that serves; it finds modules where this one does, and nothing else is loaded."""
    root = str(Path(__file__).resolve().parents[2])
    path = [root, *(entry for entry in sys.path if entry and entry != root)]
    call = f"serve({channel}, {memory}, {family!r})"
    code = f"import sys; sys.path[:] = {path!r}; from bundle.dicom.codecs import serve; {call}"
    return [sys.executable, "-S", "-c", code]
