"""Our model as rows of the table: one step, samples, their mean, and the ablations."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from bundle.configuration import checked_number
from bundle.errors import BundleError
from bundle.evaluation.interpolation import consistent
from bundle.evaluation.methods import Estimate, Method, Problem
from bundle.metrics.noise import noise_level
from bundle.networks.restorer import Restorer
from bundle.restoration.inferer import RestorationInferer
from bundle.restoration.mirrors import COUNTS
from bundle.restoration.registry import NO_CARD, WeightsCard
from bundle.restoration.uncertainty import Uncertainty

RESTORED = "restored"


def our_methods(
    network: Restorer,
    inferer: RestorationInferer,
    *,
    device: torch.device,
    sampled_steps: Sequence[int] = (),
    averaged_samples: int = 0,
    averaged_steps: int = 4,
    averaged_flips: int = 0,
    strengths: Sequence[float] = (),
    card: WeightsCard = NO_CARD,
    data_consistency: bool = False,
) -> list[Method]:
    """Return the rows of our model.

    Args:
        network: the restorer.
        inferer: its steps and num_samples are those of the row 'restored'.
        device: where the network runs.
        sampled_steps: a row for each: one draw with so many steps.
        averaged_samples: draws whose mean is a row; 0 for no such row.
        averaged_steps: steps of those draws.
        averaged_flips: mirror images that one step is averaged over for a row; 0 for no such row.
        strengths: a row for each: the row 'restored' with that share of its change.
        card: how the deviation of those draws is calibrated.
        data_consistency: thin slices average to the thick ones that they came from.

    Raises:
        BundleError: when a row cannot be as it is asked for.
    """
    _require_rows(sampled_steps, averaged_samples, averaged_flips, strengths)

    def restore(problem: Problem, chosen: RestorationInferer) -> np.ndarray:
        volume = torch.from_numpy(problem.degraded_hu)[None, None].to(device)
        spacing_mm = torch.tensor(problem.spacing_mm, dtype=torch.float32)[None].to(device)
        restored = chosen(volume, network, spacing_mm=spacing_mm)[0, 0].float().cpu().numpy()
        return consistent(problem, restored) if data_consistency else restored

    def average(problem: Problem) -> Estimate:
        """Mean and calibrated deviation of the draws, as `run inference` gives them."""
        several = _changed(inferer, averaged_steps, averaged_samples)
        hu = torch.from_numpy(problem.degraded_hu)
        mean, deviation = hu.clone(), torch.zeros_like(hu)
        for piece in several.pieces(hu, network, spacing_mm=torch.tensor(problem.spacing_mm, dtype=torch.float32)):
            assert piece.deviation is not None
            mean[..., piece.slices] += piece.difference
            deviation[..., piece.slices] = piece.deviation
        scale, floor_hu = card.calibration.factors(noise_level(problem.degraded_hu), samples=averaged_samples)
        calibrated = Uncertainty(deviation.numpy(), scale=scale, floor_hu=floor_hu)
        restored = consistent(problem, mean.numpy()) if data_consistency else mean.numpy()
        return Estimate(restored, np.stack([calibrated[:, :, k] for k in range(hu.shape[2])], axis=2))

    restored_once = _keeping_the_last(lambda problem: restore(problem, inferer))  # rows of weaker strength share it

    def weakened(problem: Problem, *, strength: float) -> np.ndarray:
        return problem.degraded_hu + np.float32(strength) * (restored_once(problem) - problem.degraded_hu)

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
        Method(RESTORED, "ours", f"ours, {_spoken(inferer)}", restored_once),
    ]
    for steps in sampled_steps:
        other = _changed(inferer, steps, 1)
        name = f"sample_{steps}_steps"
        methods.append(Method(name, "ours", f"ours, {_spoken(other)}", lambda p, o=other: restore(p, o)))  # type: ignore
    if averaged_flips:
        mirrored = _changed(inferer, 1, 1, averaged_flips)
        what = f"ours, {_spoken(mirrored)}"
        methods.append(Method(f"mean_of_{averaged_flips}_flips", "ours", what, lambda p: restore(p, mirrored)))
    for strength in strengths:
        what = f"ours, {_spoken(inferer)}, strength {strength}"
        methods.append(Method(f"strength_{strength}", "ours", what, functools.partial(weakened, strength=strength)))
    if averaged_samples:
        what = _spoken(_changed(inferer, averaged_steps, averaged_samples))
        methods.append(Method(f"mean_of_{averaged_samples}_samples", "ours", f"ours, {what}", average))
    return [*methods, without("denoiser"), without("refiner")]


def _require_rows(
    sampled_steps: Sequence[int], averaged_samples: int, averaged_flips: int, strengths: Sequence[float]
) -> None:
    if averaged_samples and checked_number("averaged_samples", averaged_samples, int, low=0) < 2:
        raise BundleError("averaged_samples must be 2 or more, or 0 for no such row")
    if averaged_flips not in (0, *COUNTS[1:]):
        raise BundleError(f"averaged_flips must be 2 or 4, or 0 for no such row, not {averaged_flips}")
    for name, asked in (("sampled_steps", sampled_steps), ("strengths", strengths)):
        if not isinstance(asked, Sequence) or isinstance(asked, str):
            raise BundleError(f"{name} {asked} is no list", hint=f'write "[{asked}]"')
    for steps in sampled_steps:
        checked_number("sampled_steps", steps, int, low=1, high=1000)
    for strength in strengths:
        checked_number("strengths", strength, float, low=0, high=1)


def _keeping_the_last(restore: Callable[[Problem], np.ndarray]) -> Callable[[Problem], np.ndarray]:
    last: list[tuple[Problem, np.ndarray]] = []

    def restored(problem: Problem) -> np.ndarray:
        if not last or last[0][0] is not problem:
            last[:] = [(problem, restore(problem))]
        return last[0][1]

    return restored


@contextlib.contextmanager
def _removed(network: Restorer, part: str) -> Iterator[None]:
    setattr(network, f"use_{part}", False)
    try:
        yield
    finally:
        setattr(network, f"use_{part}", True)


def _changed(inferer: RestorationInferer, steps: int, samples: int, flips: int = 1) -> RestorationInferer:
    other = copy.copy(inferer)
    other.steps, other.num_samples, other.flips = steps, samples, flips
    return other


def _spoken(inferer: RestorationInferer) -> str:
    steps = "1 step" if inferer.steps == 1 else f"{inferer.steps} steps"
    if inferer.flips > 1:
        return f"{steps}, mean over {inferer.flips} mirror images"
    return f"{steps}, mean of {inferer.num_samples} draws" if inferer.num_samples > 1 else steps
