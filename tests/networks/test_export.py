import json

import pytest
import torch

from bundle.errors import BundleError
from bundle.networks.export import MANIFEST, export_parts, largest_program_difference, parts_of
from bundle.networks.presets import build_restorer


def test_parts_take_what_they_say_and_no_input_twice(randomise):
    net = randomise(build_restorer("tiny"))
    with torch.no_grad():
        parts = parts_of(net)
        assert list(parts) == ["encoder", "denoiser", "decoder", "refiner"]
        for part in parts.values():
            inputs = list(part.inputs.values())
            # torch.export takes one tensor given twice for one input, and the export is silently wrong.
            assert len({id(one) for one in inputs}) == len(inputs)
            assert len(part.shapes) == len(inputs)
            assert torch.isfinite(part.network(*inputs)).all()


def test_only_an_export_is_replaced(tmp_path):
    net, folder = build_restorer("tiny"), tmp_path / "out"
    folder.mkdir()  # an empty one harms nobody
    for _ in range(2):
        export_parts(net, folder, formats=[], about={})
    assert [path.name for path in folder.iterdir()] == [MANIFEST]
    thesis = folder / "thesis.txt"
    thesis.write_text("years of work")
    for _ in range(2):
        with pytest.raises(BundleError, match="'out' holds other files"):
            export_parts(net, folder, formats=[], about={})
        assert thesis.read_text() == "years of work"
        (folder / MANIFEST).unlink(missing_ok=True)
    with pytest.raises(BundleError, match=r"'thesis\.txt' holds other files"):
        export_parts(net, thesis, formats=[], about={})


def test_unknown_format(tmp_path):
    with pytest.raises(BundleError, match="format 'tflite'"):
        export_parts(build_restorer("tiny"), tmp_path / "out", formats=["tflite"], about={})
    assert not (tmp_path / "out").exists()


@pytest.mark.full
@pytest.mark.parametrize("learned", [True, False], ids=["learned", "basis"])
def test_programs_equal_the_network_at_shapes_never_exported(randomise, tmp_path, learned):
    net = randomise(build_restorer("tiny"))
    if not learned:
        net.autoencoder.load_state_dict(build_restorer("tiny").autoencoder.state_dict())
    export_parts(net, tmp_path / "out", formats=["torch"], about={"weights_sha256": "none"})
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert sorted(manifest["sha256"]) == [f"{name}.pt2" for name in ("decoder", "denoiser", "encoder", "refiner")]
    assert largest_program_difference(net, tmp_path / "out") < 1e-4
    assert largest_program_difference(randomise(build_restorer("tiny"), seed=1), tmp_path / "out") > 0.1
