"""For people who come from video tools: an MP4 or a stack of pictures in, an MP4 preview out.

A video of CT has lost most of it: grey levels stand for one window of HU, in 256 steps, and what lies outside the
window is gone. The result is a preview, never a series; `loss` says in words what was lost.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bundle.errors import BundleError, ExitCode
from bundle.files import whole_file
from bundle.units import SOFT_TISSUE_WINDOW, window_limits

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_LEVELS = 255
_MP4: dict[str, Any] = {"plugin": "FFMPEG", "extension": ".mp4"}  # of a temporary file, whose name does not say it


def is_video_input(path: str | Path) -> bool:
    """Whether `path` is a video file, or a folder of pictures and of nothing that could be CT."""
    path = Path(path)
    if path.is_dir():
        files = [one for one in path.iterdir() if one.is_file() and not one.name.startswith(".")]
        return bool(files) and all(one.suffix.lower() in PICTURE_SUFFIXES for one in files)
    return path.suffix.lower() in VIDEO_SUFFIXES


def read_frames(path: str | Path) -> np.ndarray:
    """Grey frames uint8 (H, W, D) of a video, or of a folder of pictures in the order of their names.

    Raises:
        BundleError: when it cannot be read, or the pictures differ in size.
    """
    imageio = _imageio()
    path = Path(path)
    try:
        if path.is_dir():
            names = sorted(one for one in path.iterdir() if one.suffix.lower() in PICTURE_SUFFIXES)
            frames = [np.asarray(imageio.imread(name)) for name in names]
        else:
            frames = list(imageio.imiter(path, plugin="FFMPEG"))
    except Exception as error:  # each plugin has its own
        raise BundleError(f"'{path.name}' cannot be read as video or pictures", hint="convert it to MP4") from error
    grey = [_grey(frame) for frame in frames]
    if len({frame.shape for frame in grey}) != 1:
        raise BundleError(f"'{path.name}' holds no frames of one size", hint="give pictures of one size")
    return np.stack(grey, axis=2)


def to_hu(frames: np.ndarray, window: tuple[float, float] = SOFT_TISSUE_WINDOW) -> np.ndarray:
    """Grey frames uint8 to HU float32: 0 is the window's lower end, 255 its upper end."""
    low, high = window_limits(window)
    return (low + frames.astype(np.float32) / _LEVELS * (high - low)).astype(np.float32)


def to_frames(volume_hu: np.ndarray, window: tuple[float, float] = SOFT_TISSUE_WINDOW) -> np.ndarray:
    """HU to grey frames uint8; what lies outside the window is cut off."""
    low, high = window_limits(window)
    return np.clip(np.rint((volume_hu - low) / (high - low) * _LEVELS), 0, _LEVELS).astype(np.uint8)


def loss(window: tuple[float, float]) -> str:
    """What the video cannot show, in words."""
    low, high = window_limits(window)
    step = (high - low) / _LEVELS
    return (
        f"a preview: grey levels stand for {low:g} to {high:g} HU in steps of {step:.2g} HU, values outside are lost, "
        "and the video's compression changes grey levels again; restore the DICOM series for HU"
    )


def write_mp4(path: Path, frames: np.ndarray, *, frames_per_second: float = 10.0) -> None:
    """Write grey frames uint8 (H, W, D) as H.264 that every player opens; odd sizes get one more row or column.

    Raises:
        BundleError: when the package for it is not installed, or with exit code 74 when the disk is full.
    """
    imageio = _imageio()
    even = np.pad(frames, ((0, frames.shape[0] % 2), (0, frames.shape[1] % 2), (0, 0)), mode="edge")
    pictures = np.repeat(np.moveaxis(even, 2, 0)[..., None], 3, axis=-1)
    with whole_file(path) as temporary:
        written: Exception | None = None
        try:
            imageio.imwrite(
                temporary,
                pictures,
                **_MP4,
                fps=frames_per_second,
                codec="libx264",
                macro_block_size=1,
                ffmpeg_log_level="quiet",  # what went wrong is one line of ours
                output_params=["-crf", "17", "-f", "mp4"],
            )
        except OSError as error:  # ffmpeg has ended early; its pipe's error has no number and many lines
            written = error
        # imageio does not ask how ffmpeg ended: on a full disk it leaves a part of a file and says nothing.
        kept = 0 if written else _readable_frames(temporary)
        if kept != len(pictures):
            raise BundleError(
                f"'{path.name}' was not written whole: {kept} of {len(pictures)} frames can be read back",
                hint="make room on its disk, or name another folder, and run it again",
                exit_code=ExitCode.IO,
            ) from written


def restore_video(
    source: str | Path,
    target: Path,
    restore: Callable[[np.ndarray, np.ndarray], Any],
    *,
    window: tuple[float, float] = SOFT_TISSUE_WINDOW,
    spacing_mm: tuple[float, float, float] = (0.75, 0.75, 2.0),
    frames_per_second: float = 10.0,
) -> str:
    """Restore a video or a stack of pictures into an MP4 and return what was lost, in words.

    Args:
        source: video file, or folder of pictures.
        target: MP4.
        restore: of (HU (H, W, D), affine), as `bundle.restoration.api.load_restorer` gives.
        window: centre and width in HU that the grey levels stand for; a video does not say it.
        spacing_mm: along rows, columns and frames; a video does not say it either.
        frames_per_second: of the MP4.
    """
    volume_hu = to_hu(read_frames(source), window)
    restored = restore(volume_hu, np.diag([*spacing_mm, 1.0])).restored_hu
    write_mp4(target, to_frames(restored, window), frames_per_second=frames_per_second)
    return loss(window)


def _readable_frames(path: Path) -> int:
    """How many frames of an MP4 a player would show; 0 where it cannot be opened."""
    try:
        return sum(1 for _ in _imageio().imiter(path, **_MP4))
    except Exception:  # each plugin has its own
        return 0


def _grey(frame: np.ndarray) -> np.ndarray:
    values = np.asarray(frame)
    if values.ndim == 3:  # grey, grey and alpha, colours, colours and alpha
        values = values[..., : 1 if values.shape[-1] < 3 else 3].mean(axis=-1)
    if values.dtype == np.uint16:
        values = values / 257
    return np.clip(np.rint(values), 0, _LEVELS).astype(np.uint8)


def _imageio() -> Any:
    try:
        import imageio.v3
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise BundleError("videos need imageio and imageio-ffmpeg", hint="pip install 'ct-enhance[video]'") from error
    return imageio.v3
