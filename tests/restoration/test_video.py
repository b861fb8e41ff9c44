import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from phantom_series import phantom_hu
from real_parts import missing

from bundle.errors import BundleError, ExitCode
from bundle.restoration.video import is_video_input, loss, read_frames, restore_video, to_frames, to_hu, write_mp4

pytest.importorskip("imageio_ffmpeg")
WINDOW = (50.0, 400.0)
ROOT = Path(__file__).resolve().parents[2]
DISK_BYTES = 98_304

# Argument: a folder on a small disk. A good MP4 first, then one of the same name that does not fit.
ON_A_FULL_DISK = """
import json, sys
from pathlib import Path
import numpy as np
from bundle.errors import report
from bundle.restoration.video import write_mp4

folder, frames = Path(sys.argv[1]), int(sys.argv[2])
noise = np.random.default_rng(0).integers(0, 256, (128, 128, frames)).astype(np.uint8)
target = folder / "a.mp4"
write_mp4(target, noise[:32, :32, :2])
good, code = target.read_bytes(), 0
try:
    write_mp4(target, noise)
except Exception as error:
    code = report(error)
print(json.dumps({"code": code, "kept": target.read_bytes() == good, "names": [one.name for one in folder.iterdir()]}))
"""


def test_inside_the_window_hu_survive_to_half_a_step():
    hu = phantom_hu(size=32, slices=3)
    back = to_hu(to_frames(hu, WINDOW), WINDOW)
    inside = (hu >= -150) & (hu <= 250)
    assert np.abs(back - hu)[inside].max() <= 400 / 255 / 2 + 1e-3
    assert (back[hu < -150] == -150).all() and (back[hu > 250] == 250).all()
    frames = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    np.testing.assert_array_equal(to_frames(to_hu(frames, WINDOW), WINDOW), frames)
    assert "1.6 HU" in loss(WINDOW) and "-150 to 250 HU" in loss(WINDOW)


def test_mp4_out_and_in_again(tmp_path):
    frames = to_frames(phantom_hu(size=64, slices=6)[:63], WINDOW)  # an odd number of rows
    write_mp4(tmp_path / "a.mp4", frames)
    assert [one.name for one in tmp_path.iterdir()] == ["a.mp4"]
    back = read_frames(tmp_path / "a.mp4")
    assert back.shape == (64, 64, 6)
    assert np.abs(back[:63].astype(int) - frames).mean() < 3  # H.264 loses a little


def test_a_stack_of_pictures_is_restored_in_the_order_of_names(tmp_path):
    import imageio.v3 as imageio

    frames = to_frames(phantom_hu(size=48, slices=4), WINDOW)
    (tmp_path / "in").mkdir()
    for k in range(4):
        imageio.imwrite(tmp_path / "in" / f"{k:03d}.png", frames[:, :, k])
    assert is_video_input(tmp_path / "in") and is_video_input("x.MP4") and not is_video_input(tmp_path)
    np.testing.assert_array_equal(read_frames(tmp_path / "in"), frames)
    seen = {}

    def restore(hu, affine):
        seen.update(hu=hu, affine=affine)
        return types.SimpleNamespace(restored_hu=hu)

    said = restore_video(tmp_path / "in", tmp_path / "out.mp4", restore, window=WINDOW, spacing_mm=(0.5, 0.6, 3.0))
    np.testing.assert_array_equal(seen["hu"], to_hu(frames, WINDOW))
    assert np.diag(seen["affine"]).tolist() == [0.5, 0.6, 3.0, 1.0] and "preview" in said
    assert np.abs(read_frames(tmp_path / "out.mp4").astype(int) - frames).mean() < 3


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_transparency_is_no_grey(tmp_path, channels):
    import imageio.v3 as imageio

    picture = np.full((16, 16, channels), 100, np.uint8)
    if channels in (2, 4):
        picture[..., -1] = 255
    (tmp_path / "in").mkdir()
    imageio.imwrite(tmp_path / "in" / "a.png", picture.squeeze())
    assert (read_frames(tmp_path / "in") == 100).all()


def test_no_video(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(BundleError, match=r"'a.mp4' cannot be read"):
        read_frames(tmp_path / "a.mp4")


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """Start of a command that finds a small disk in the folder that comes second; it is gone with the command."""
    program = shutil.which("bwrap") or missing("bubblewrap is not installed (Debian: bubblewrap)")
    folder = tmp_path_factory.mktemp("disk")
    command = [program, "--dev-bind", "/", "/", "--size", str(DISK_BYTES), "--tmpfs", str(folder), "--"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        missing("bubblewrap may not mount a file system on this machine")
    return command, folder


@pytest.mark.parametrize("frames", [20, 300])  # ffmpeg fails when all of it has been sent, and while it is sent
def test_a_full_disk_is_told_and_the_good_mp4_stays(small_disk, frames):
    command, folder = small_disk
    script = [sys.executable, "-c", ON_A_FULL_DISK, str(folder), str(frames)]
    done = subprocess.run([*command, *script], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert json.loads(done.stdout) == {"code": ExitCode.IO, "kept": True, "names": ["a.mp4"]}, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"'a.mp4' was not written whole: 0 of {frames} frames can be read back" in line and "make room" in line


def test_what_cannot_be_read_back_is_not_kept(tmp_path, monkeypatch):
    """Without a small disk: a part of a film, as a player would show it."""
    frames = to_frames(phantom_hu(size=32, slices=4), WINDOW)
    write_mp4(tmp_path / "a.mp4", frames)
    good = (tmp_path / "a.mp4").read_bytes()
    import imageio.v3 as imageio

    whole = imageio.imwrite
    monkeypatch.setattr(imageio, "imwrite", lambda path, pictures, **kwargs: whole(path, pictures[:-1], **kwargs))
    with pytest.raises(BundleError, match="3 of 4 frames can be read back") as caught:
        write_mp4(tmp_path / "a.mp4", frames)
    assert caught.value.exit_code == ExitCode.IO and (tmp_path / "a.mp4").read_bytes() == good
    assert [one.name for one in tmp_path.iterdir()] == ["a.mp4"]
