"""Our model as rows of the table: one step, samples, their mean, and the ablations."""

import contextlib
import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from bundle.evaluation.methods import Method, Problem
from bundle.networks.restorer import Restorer
from bundle.restoration.inferer import RestorationInferer

RESTORED = "restored"


def our_methods(
    network: Restorer,
    inferer: RestorationInferer,
    *,
    device: torch.device,
    sampled_steps: Sequence[int] = (),
    averaged_samples: int = 0,
    averaged_steps: int = 4,
) -> list[Method]:
    """Return the rows of our model.

    Args:
        network: the restorer.
        inferer: its steps and num_samples are those of the row 'restored'.
        device: where the network runs.
        sampled_steps: a row for each: one draw with so many steps.
        averaged_samples: draws whose mean is a row; 0 for no such row.
        averaged_steps: steps of those draws.
    """

    def restore(problem: Problem, chosen: RestorationInferer) -> np.ndarray:
        volume = torch.from_numpy(problem.degraded_hu)[None, None].to(device)
        spacing_mm = torch.tensor(problem.spacing_mm, dtype=torch.float32)[None].to(device)
        return chosen(volume, network, spacing_mm=spacing_mm)[0, 0].float().cpu().numpy()

    def without(part: str) -> Method:
        def ablated(problem: Problem) -> np.ndarray:
            with _removed(network, part):
                return restore(problem, inferer)

        what = {"denoiser": "the latent denoiser removed: must be clearly worse", "refiner": "the refiner removed"}
        return Method(f"no_{part}", "ours", f"ours with {what[part]}", ablated)

    def ceiling(problem: Problem) -> np.ndarray:
        volume = torch.from_numpy(problem.target_hu)[None, None].to(device)
        return inferer.reconstruct(volume, network)[0, 0].float().cpu().numpy()

    definition = "encode and decode of the target: what the latent can carry at best"
    methods = [
        Method("autoencoder", "reference", definition, ceiling),
        Method(RESTORED, "ours", f"ours, {_spoken(inferer)}", lambda problem: restore(problem, inferer)),
    ]
    several = [(f"sample_{steps}_steps", _changed(inferer, steps, 1)) for steps in sampled_steps]
    if averaged_samples:
        name = f"mean_of_{averaged_samples}_samples"
        several.append((name, _changed(inferer, averaged_steps, averaged_samples)))
    for name, other in several:
        methods.append(Method(name, "ours", f"ours, {_spoken(other)}", lambda p, o=other: restore(p, o)))  # type: ignore
    return [*methods, without("denoiser"), without("refiner")]


@contextlib.contextmanager
def _removed(network: Restorer, part: str) -> Iterator[None]:
    setattr(network, f"use_{part}", False)
    try:
        yield
    finally:
        setattr(network, f"use_{part}", True)


def _changed(inferer: RestorationInferer, steps: int, samples: int) -> RestorationInferer:
    other = copy.copy(inferer)
    other.steps, other.num_samples = steps, samples
    return other


def _spoken(inferer: RestorationInferer) -> str:
    steps = "1 step" if inferer.steps == 1 else f"{inferer.steps} steps"
    return f"{steps}, mean of {inferer.num_samples} draws" if inferer.num_samples > 1 else steps
