"""Prepared cases without physics, and training workflows small enough for a test."""

import hashlib
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from phantom_series import phantom_hu, write_phantom_series

import bundle
from bundle.data.prepared import PreparedCase, prepare_cases
from bundle.data.sources import Case

ROOT = Path(bundle.__file__).resolve().parents[1]

# What every tiny training has in common; keys of configs/train.yaml.
TINY = {
    "preset": "tiny",
    "patch_size": 32,
    "num_slices": 4,
    "batch_size": 2,
    "steps_per_epoch": 4,
    "autoencoder_epochs": 1,
    "phase1_epochs": 2,
    "num_epochs": 3,
    "noise_realisations": 1,
    "learning_rate": 1.0e-3,
    "warmup_steps": 2,
    "mixed_precision": "off",
    "device": "cpu",
    "threads": 1,
    "log_pictures": False,
    "check_memory": False,
}


class CountingTransform:
    """Stands for the chain from files to noises: the file's name seeds a phantom; counts its calls."""

    def __init__(self, *, slices=12, size=64, realisations=2, spacing=(0.8, 0.8, 2.5), fraction=0.0, fail=()):
        self.slices, self.size, self.realisations, self.spacing = slices, size, realisations, spacing
        self.fraction = fraction
        self.fail = fail
        self.calls = 0

    def __call__(self, data):
        self.calls += 1
        name = Path(data["image"][0]).name
        if name in self.fail:
            raise self.fail[name]
        seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
        affine = torch.diag(torch.tensor([*self.spacing, 1.0], dtype=torch.float64))
        hu = phantom_hu(slices=self.slices, size=self.size, seed=seed) + self.fraction
        rng = np.random.default_rng(seed)
        result = {"image": MetaTensor(torch.from_numpy(hu)[None], affine=affine)}
        for number in range(self.realisations):
            for kind, scale in (("quantum", 12.0), ("electronic", 2.0)):
                # Noise that grows with the slice, so that a mixed-up order of slices shows.
                noise = rng.normal(size=hu.shape) * scale * np.linspace(1, 3, hu.shape[2])
                result[f"{kind}_{number}"] = MetaTensor(torch.from_numpy(noise.astype(np.float16))[None], affine=affine)
        return result


class PairTransform(CountingTransform):
    """Adds to the phantom a partner that is darker by 7 HU."""

    def __call__(self, data):
        assert [Path(file).name for file in data["poor"]] == ["partner"]
        result = super().__call__(data)
        result["poor"] = result["image"] - 7
        return result


def make_cases(folder: Path, names=("one",), *, patients=None) -> list[Case]:
    """Cases of one file each, whose content is its name."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = []
    for number, name in enumerate(names):
        path = folder / name
        path.write_text(name)
        patient = patients[number] if patients else f"patient-{name}"
        cases.append(Case(key=f"key-{name}", patient_key=patient, files=(str(path),), label=f"group-{number}/{name}"))
    return cases


def prepare(folder: Path, names=("one",), *, patients=None, **settings) -> list[PreparedCase]:
    """Prepared cases, one for each name."""
    transform = CountingTransform(**settings)
    cases = make_cases(folder / "files", names, patients=patients)
    return prepare_cases(
        cases, transform=transform, cache_dir=folder / "cache", recipe=settings, realisations=transform.realisations
    )[0]


def write_phantoms(folder: Path, *, patients=2) -> Path:
    """A data folder of DICOM, one series for each patient."""
    for number in range(patients):
        write_phantom_series(folder / f"patient{number}", patient=f"phantom-{number}", seed=number, slices=12, size=64)
    return folder


def make_workflow(dataset_dir, output_dir, *, cache=None, start=0, configs=("train.yaml",), **overrides):
    """An initialised workflow of configs/train.yaml and its trainer; `start` is torch's seed before it is built."""
    from monai.bundle import ConfigWorkflow

    folders = {"dataset_dir": dataset_dir, "output_dir": output_dir, "training_data#cache_dir": cache}
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / name) for name in configs],
        meta_file=str(ROOT / "configs" / "metadata.json"),
        logging_file=False,
        run_id="training",
        workflow_type="train",
        **{key: str(folder) for key, folder in folders.items() if folder is not None},
        **{**TINY, **overrides},
    )
    torch.manual_seed(start)
    workflow.initialize()
    return workflow, workflow.parser.get_parsed_content("train#trainer")


def train_in_child(log, kill, arguments):
    """Train in a process of its own, note every loss, and die without warning when `kill` says so.

    Args:
        log: file to which a line is added for each iteration: its number and the loss, exactly.
        kill: ('iteration' or 'epoch', iteration) after whose completion SIGKILL comes; None trains to the end.
        arguments: of make_workflow.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    workflow, trainer = make_workflow(**arguments)

    def note(engine):
        with Path(log).open("a") as stream:
            stream.write(f"{engine.state.iteration} {engine.state.output['loss'].hex()}\n")

    def die(engine):
        if engine.state.iteration == kill[1]:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    if kill:
        trainer.add_event_handler(Events.EPOCH_COMPLETED if kill[0] == "epoch" else Events.ITERATION_COMPLETED, die)
    workflow.run()


def run_child(log, kill, **arguments):
    """Exit code of train_in_child; forked, so that imports are paid for once."""
    # CUDA's threads do not survive a fork; where there are any, a fresh interpreter it has to be.
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    process = context.Process(target=train_in_child, args=(str(log), kill, arguments))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode


def equal(a, b):
    """Whether two checkpoints, or parts of them, are the same to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b
