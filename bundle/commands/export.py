"""`python -m bundle export OUTPUT`: the networks as `torch.export` programs and ONNX, checked against PyTorch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundle.errors import BundleError, ExitCode
from bundle.overrides import parse_command_line

USAGE = "python -m bundle export OUTPUT [--formats torch,onnx] [--key value ...]"
TOLERANCE = 1.0e-3
TOLERANCE_HU = 0.1  # a tenth of what DICOM stores; float32 in another order of operations stays far below


def export(arguments: Sequence[str]) -> int:
    """Export the network of the inference config; options are its keys.

    Returns:
        The exit code.

    Raises:
        BundleError: when the arguments are wrong, or the export does not do what the network does.
    """
    if not arguments or arguments[0].startswith("--"):
        raise BundleError("OUTPUT is required", hint=USAGE)
    line = parse_command_line(arguments[1:])
    if line.positionals:
        raise BundleError(f"unexpected argument '{line.positionals[0]}'", hint=USAGE)
    options = dict(line.options)
    formats = _formats(options.pop("formats", "torch,onnx"))
    folder = Path(arguments[0])
    for text in write_export(folder, formats=formats, options=options):
        print(text)
    return ExitCode.DONE


def write_export(folder: Path, *, formats: Sequence[str], options: dict[str, Any]) -> list[str]:
    """Write and check an export; returns what to tell.

    Raises:
        BundleError: when the export does not do what the network does.
    """
    from bundle.networks.export import export_parts, largest_program_difference, require_onnx
    from bundle.networks.exported import largest_change_hu, largest_difference_hu, with_exported
    from bundle.restoration.api import inference_parser

    if "onnx" in formats:
        require_onnx()
    parser = inference_parser(**options)
    network = parser.get_parsed_content("network_def")
    digest = parser.get_parsed_content("weights_digest")
    about = {
        "weights_sha256": digest,
        **{key: parser.get_parsed_content(key) for key in ("preset", "windows", "sampler")},
    }
    manifest = export_parts(network, folder, formats=formats, about=about)
    size = sum((folder / name).stat().st_size for name in manifest["sha256"]) / 1e6
    lines = [f"exported {len(manifest['sha256'])} files, {size:.0f} MB, weights {digest[:12]}"]
    if "torch" in formats:
        difference = largest_program_difference(network, folder)
        if difference > TOLERANCE:
            raise BundleError(
                f"the export differs from the network by {difference:.3g} standard deviations", hint="try another torch"
            )
        lines.append(f"largest difference torch.export - PyTorch: {difference:.2g} standard deviations of the output")
    if "onnx" in formats:
        difference = largest_difference_hu(network, with_exported(network, folder, weights_digest=digest))
        # Weights that were never trained change thousands of HU, in which float32 has no tenths.
        allowed = max(TOLERANCE_HU, TOLERANCE * largest_change_hu(network))
        if difference > allowed:
            raise BundleError(
                f"the export differs from the network by {difference:.3g} HU", hint="try other versions of torch, onnx"
            )
        lines.append(f"largest difference ONNX Runtime - PyTorch: {difference:.2g} HU (allowed: {allowed:.2g} HU)")
        lines.append(f"use it: ct-enhance INPUT OUTPUT --exported_dir {folder}")
    return lines


def _formats(given: Any) -> list[str]:
    """`torch,onnx` reaches us as a text, a tuple or a list."""
    return [one.strip() for one in given.split(",")] if isinstance(given, str) else [str(one) for one in given]
