"""Make models/model.pt from a training run: python scripts/pack_weights.py RUN/model.pt [models/model.pt].

Takes weights or a checkpoint (its averaged weights). The denoiser, nearly all of the size, is stored as float16;
the autoencoder stays float32, because its path has to be exact. Prints the file's SHA-256.
"""

import argparse
from pathlib import Path

import torch

from bundle.configuration import bundle_root
from bundle.errors import BundleError, report
from bundle.files import file_digest, whole_file
from bundle.networks.presets import build_restorer
from bundle.networks.weights import load_weights

MOST_BYTES = 24 * 1024 * 1024  # of the model zoo's limit for files in a repository


def pack(source: Path, target: Path, *, preset: str) -> str:
    """Write the packed weights and return their SHA-256."""
    network = build_restorer(preset)
    load_weights(network, source)
    state = {
        key: value.half() if key.startswith("denoiser.") and value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    with whole_file(target) as temporary:
        torch.save(state, temporary)
        if temporary.stat().st_size > MOST_BYTES:
            raise BundleError(f"packed weights are {temporary.stat().st_size} bytes, more than {MOST_BYTES}")
    load_weights(build_restorer(preset), target)
    return file_digest(target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, nargs="?", default=Path(bundle_root()) / "models" / "model.pt")
    parser.add_argument("--preset", default="small")
    arguments = parser.parse_args()
    try:
        print(pack(arguments.source, arguments.target, preset=arguments.preset))
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
