"""The inference and evaluation workflows with a network small enough for a test."""

from pathlib import Path

import torch
from monai.bundle import ConfigWorkflow

import bundle
from bundle.networks.presets import build_restorer
from bundle.training.handlers import save_weights

ROOT = Path(bundle.__file__).resolve().parents[1]


def write_tiny_weights(path: Path, *, part: str, scale: float) -> Path:
    """Weights of preset 'tiny' whose `part` was moved: fresh ones would change nothing."""
    torch.manual_seed(3)
    restorer = build_restorer("tiny")
    with torch.no_grad():
        for parameter in getattr(restorer, part).parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    save_weights(restorer, path)
    return path


def run_tiny(
    config: str | list[str], run_id: str, *, dataset_dir: Path, output_dir: Path, weights: Path, **options
) -> None:
    """Run a workflow of configs/ (one, or several in layers) in this process; options override its keys."""
    names = [config] if isinstance(config, str) else config
    fixed = {"dataset_dir": str(dataset_dir), "output_dir": str(output_dir), "weights_file": str(weights)}
    small = {"preset": "tiny", "mixed_precision": "off", "device": "cpu"}
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / name) for name in names],
        meta_file=str(ROOT / "configs" / "metadata.json"),
        logging_file=None,
        workflow_type="infer",
        run_id=run_id,
        **{**fixed, **small, **options},
    )
    workflow.initialize()
    workflow.run()
