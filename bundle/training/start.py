"""What happens before the first step: checks, starting weights, data, and a record of settings and machine."""

import logging
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from bundle.data.assembly import TrainingData
from bundle.errors import BundleError
from bundle.files import digest, require_writable, whole_file, write_json
from bundle.networks.weights import load_starting_weights
from bundle.overrides import CommandLine, current_command_line, load_config
from bundle.training import distributed
from bundle.training.optim import MovingAverage
from bundle.training.state import versions

logger = logging.getLogger(__name__)

# Folders and files: their names may be a patient's.
_PRIVATE = ("dataset_dir", "output_dir", "weights_file", "resume", "resume_weights_only", "validation_folders")


def start_run(
    output_folder: Path,
    network: torch.nn.Module,
    average: MovingAverage,
    weights_file: str | Path | None,
    data: TrainingData,
    *,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Check the output folder, load starting weights, prepare the data and write what the run is made of.

    Args:
        output_folder: of the run.
        network: gets the starting weights.
        average: gets them too.
        weights_file: a flat state_dict or a checkpoint, whole or of a part of the networks; None starts at random.
        data: the cases.
        settings: what goes into `run.json`; without folders.

    Raises:
        BundleError: when the folder cannot be written to, the weights do not fit, or the data hold nothing usable.
    """
    distributed.require_started()
    distributed.from_main(lambda: str(require_writable(output_folder, option="output_dir")))
    if weights_file:
        report = load_starting_weights(network, weights_file)
        average.module.load_state_dict(network.state_dict())
        if distributed.rank() == 0:
            logger.info("%s", report.summary)
            write_json(output_folder / "starting_weights.json", report.as_dict())
    prepare_data(data)
    if distributed.rank() == 0:
        data.write_summary(output_folder / "data.json")
        write_json(output_folder / "run.json", {"settings": dict(settings or {}), "environment": environment()})
        _write_config(output_folder / "config.yaml", current_command_line())
        split = data.split
        logger.info(
            "%d series train, %d validate (%s), %d skipped%s",
            len(split.train),
            len(split.validation),
            split.validation_on,
            len(data.skipped),
            f", {awaited} archives follow" if (awaited := data.awaited) else "",
        )


def prepare_data(data: TrainingData) -> None:
    """Let rank 0 prepare the cases, then read them on the other ranks, and see that all have the same.

    Ranks of different data would take a different number of steps, and wait for each other for ever.

    Raises:
        BundleError: on all ranks, when preparation fails or the data differ.
    """
    distributed.from_main(lambda: len(data.split.train))
    split = data.split
    parts = [(part.case.key, part.start, part.stop) for part in (*split.train, *split.validation)]
    found = distributed.gathered((digest(repr(parts), data.revision), len(parts)))
    for rank, (other, number) in enumerate(found):
        if other != found[0][0]:
            raise BundleError(
                f"process {rank} has other data than process 0: {number} parts of series, not {found[0][1]}",
                hint="dataset_dir and output_dir must be the same folder for all processes",
            )


def environment() -> dict[str, Any]:
    """Versions, machine and processes of this run."""
    cuda = torch.cuda.is_available()
    return {
        **versions(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
    }


def _write_config(path: Path, line: CommandLine | None) -> None:
    """The configs as they were merged, with what the command line changed; names of folders left out."""
    if line is None or not line.config_files:
        return
    config = load_config(line.config_files)
    for key, value in line.options.items():
        target, *parts = key.replace("#", "::").split("::")[::-1]
        node: Any = config
        for part in reversed(parts):
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[int(target) if isinstance(node, list) else target] = value
    for key in (*_PRIVATE, "config_file", "args_file"):
        if config.get(key):
            config[key] = "(given)"
    with whole_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False))
