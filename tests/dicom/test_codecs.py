import subprocess
import sys

import numpy as np
import pydicom
import pytest
from compressed_series import HTJ2K, write_compressed_series
from phantom_series import phantom_hu
from pydicom import uid
from pydicom.encaps import get_frame

from bundle.dicom.codecs import JPEG, JPEG_2000, JPEG_LS, RLE, Codec, decompress

FAMILIES = {
    uid.RLELossless: RLE,
    uid.JPEGLossless: JPEG,
    uid.JPEGLosslessSV1: JPEG,
    uid.JPEGLSLossless: JPEG_LS,
    uid.JPEG2000Lossless: JPEG_2000,
    HTJ2K[0]: JPEG_2000,
}


@pytest.mark.parametrize("syntax", FAMILIES, ids=lambda syntax: syntax.name)
def test_words_are_exact(tmp_path, syntax):
    hu = write_compressed_series(tmp_path, syntax, slices=4)
    dataset = pydicom.dcmread(next(path for path in tmp_path.iterdir() if pydicom.dcmread(path).InstanceNumber == 2))
    codec = Codec(family=FAMILIES[syntax], rows=dataset.Rows, columns=dataset.Columns, allocated=16)
    words = decompress(get_frame(dataset.PixelData, 0, number_of_frames=1), codec)
    np.testing.assert_array_equal(np.frombuffer(words, "<u2").reshape(dataset.Rows, -1).T, hu[:, :, 1] + 1024)
    assert codec.largest_bytes >= len(words)


def test_ready_made_frames_are_of_the_phantom(tmp_path):
    hu = write_compressed_series(tmp_path, HTJ2K[0], slices=4)
    np.testing.assert_array_equal(hu, phantom_hu(slices=4, size=24))


def test_imports_nothing_heavy():
    code = "import sys, bundle.dicom.codecs; print({'torch', 'monai', 'pydicom', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
