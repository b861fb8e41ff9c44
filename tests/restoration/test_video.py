import types

import numpy as np
import pytest
from phantom_series import phantom_hu

from bundle.errors import BundleError
from bundle.restoration.video import is_video_input, loss, read_frames, restore_video, to_frames, to_hu, write_mp4

pytest.importorskip("imageio_ffmpeg")
WINDOW = (50.0, 400.0)


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
