"""What happens to pods, whatever engine runs them: interruption, sudden death, shards."""

import dataclasses
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from phantom_series import write_phantom_series
from pod_simulator import Container, Pod, pod_of_folder, volume

STORAGE = "ct-enhance-storage"
TINY = {"preset": "tiny", "mixed_precision": "off"}


def wait_until(condition: Callable[[], Any], container: Container, seconds: float = 900) -> None:
    """Poll until something has happened; the container must not end before."""
    until = time.monotonic() + seconds
    while not condition():
        assert container.process.poll() is None, container.log.read_text()[-3000:]
        assert time.monotonic() < until, container.log.read_text()[-3000:]
        time.sleep(0.002)


def give_to_root(folder: Path) -> None:
    """Undo fsGroup."""
    if os.getuid() == 0:
        os.chown(folder, 0, 0)
    else:
        folder.chmod(0o555)


def weights(storage: Path, run: str = "smoke") -> dict[str, Any]:
    import torch

    return torch.load(storage / run / "model.pt", weights_only=True)


def checkpoints(storage: Path) -> set[str]:
    return {path.name for path in (storage / "smoke" / "checkpoints").glob("checkpoint_*.pt.sha256")}


def train(engine: Any, storage: Path) -> Container:
    return engine.start(pod_of_folder("overlays/cpu-smoke"), {STORAGE: storage})


def uninterrupted(engine: Any, storage: Path) -> dict[str, Any]:
    """The weights of the same training in one go; the folder is emptied for the next."""
    container = train(engine, storage)
    assert container.wait() == 0, container.log.read_text()[-3000:]
    result = weights(storage)
    (storage / "smoke").rename(storage / "one-go")
    return result


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    import torch

    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def training_is_interrupted_and_goes_on(engine: Any, storage: Path) -> None:
    """SIGTERM gives 75 and a checkpoint; the same pod again goes on, to the weights of an undisturbed training."""
    expected = uninterrupted(engine, storage)
    codes = []
    for number in range(3):
        container, before = train(engine, storage), checkpoints(storage)
        while number < 2 and checkpoints(storage) <= before and container.process.poll() is None:
            time.sleep(0.01)
        if number < 2 and container.process.poll() is None:
            container.signal(signal.SIGTERM)
            assert container.process.wait(pod_of_folder("overlays/cpu-smoke").grace_seconds) is not None
        codes.append(container.wait())
        if codes[-1] == 0:
            break
        assert codes[-1] == 75, container.log.read_text()[-3000:]
        assert container.last_line().startswith("error: ") and "again" in container.last_line()
    assert codes[0] == 75 and codes[-1] == 0, codes
    assert same(weights(storage), expected)


def killed_in_the_middle_of_a_save(engine: Any, storage: Path) -> None:
    """SIGKILL while a checkpoint is written: the next pod goes on from the one before, and tidies up."""
    expected = uninterrupted(engine, storage)
    container = train(engine, storage)
    folder = storage / "smoke" / "checkpoints"
    # The second save: there is something to go on from.
    wait_until(lambda: checkpoints(storage) and any(folder.glob(".checkpoint_*.part")), container)
    container.signal(signal.SIGKILL)
    assert container.wait() == 137
    torn = {path.name for path in folder.glob(".*.part")}
    assert torn, "the save was over before the signal came"
    container = train(engine, storage)
    assert container.wait() == 0, container.log.read_text()[-3000:]
    assert {path.name for path in folder.glob(".*.part")} == set()
    assert same(weights(storage), expected)


def with_tiny_weights(folder: Path) -> Path:
    """The volume, with what a tiny training would have left on it."""
    from tiny_workflows import write_tiny_weights  # MONAI takes seconds to import

    (folder / "train").mkdir()
    write_tiny_weights(folder / "train" / "model.pt", part="refiner", scale=0.01)
    return volume(folder, 10001)


def each_series_is_restored_by_exactly_one_index(engine: Any, folder: Path, *, indices: int = 3) -> None:
    """All indices at once on one volume; every series is done once, and a second round does nothing."""
    for number in range(7):
        write_phantom_series(
            folder / "volume" / "in" / f"scan{number}", patient=f"patient-{number}", slices=4, seed=number
        )
    storage = with_tiny_weights(folder / "volume")
    pods = [
        with_overrides(pod_of_folder("inference", index=index), "inference.yaml", **TINY) for index in range(indices)
    ]
    assert {part for pod in pods for part in pod.argv if "/" in part and part[0].isdigit()} == {
        f"{index}/{indices}" for index in range(indices)
    }
    containers = [engine.start(pod, {STORAGE: storage}) for pod in pods]
    logs = []
    for container in containers:
        assert container.wait() == 0, container.log.read_text()[-3000:]
        logs.append(container.log.read_text())
    done = sorted(path.parent.name for path in (storage / "out").glob("*/summary.json"))
    assert len(done) == 7
    said = Counter(key for log in logs for key in done if f"series {key}: done" in log)
    assert said == Counter(done)
    files = {path: path.stat().st_mtime_ns for path in (storage / "out").glob("*/dicom/*.dcm")}
    assert len(files) == 28 and not list((storage / "out").glob(".*.part"))
    again = [engine.start(pod, {STORAGE: storage}) for pod in pods]
    assert [container.wait() for container in again] == [0] * indices
    assert {path: path.stat().st_mtime_ns for path in (storage / "out").glob("*/dicom/*.dcm")} == files
    listed = [json.loads(path.read_text())["series"] for path in (storage / "out").glob("summary*.json")]
    assert {key for series in listed for key in series} == set(done)


def with_overrides(pod: Pod, name: str, **keys: Any) -> Pod:
    """The same pod with these settings alone in its ConfigMap: networks and steps small enough for a test."""
    return dataclasses.replace(pod, files={path: {name: yaml.safe_dump(keys)} for path in pod.files})


def with_argument(pod: Pod, old: str, new: str) -> Pod:
    """The same pod with another argument: where a server stands, what a test does not wait for."""
    assert pod.argv.count(old) == 1, (old, pod.argv)
    return dataclasses.replace(pod, argv=tuple(new if argument == old else argument for argument in pod.argv))


def on_the_cpu(pod: Pod, *, processes: int) -> Pod:
    """A training for GPUs in so many processes on the CPU: its command, with the overrides of cpu-smoke, but tiny."""
    (smoke,) = pod_of_folder("overlays/cpu-smoke").files.values()
    argv = list(pod.argv)
    argv[argv.index("--nproc_per_node") + 1] = str(processes)
    tiny = {"backend": "gloo", "preset": "tiny", "patch_size": 32, "mixed_precision": "off"}
    keys = yaml.safe_load(smoke["train.yaml"]) | tiny
    return with_overrides(dataclasses.replace(pod, argv=tuple(argv)), "train.yaml", **keys)


def several_processes_are_interrupted_and_go_on(engine: Any, storage: Path, pods: list[Pod], **settings: Any) -> None:
    """SIGTERM to the last pod ends all with 75 and a checkpoint; all again go on, to the weights of one go."""

    def start() -> list[Container]:
        return [engine.start(pod, {STORAGE: storage}, **settings) for pod in pods]

    def codes(containers: list[Container]) -> list[int]:
        return [container.wait() for container in containers]

    folder = storage / "train"
    containers = start()
    assert codes(containers) == [0] * len(pods), "\n".join(one.log.read_text()[-3000:] for one in containers)
    expected = weights(storage, "train")
    folder.rename(storage / "one-go")
    containers = start()
    wait_until(lambda: list((folder / "checkpoints").glob("checkpoint_step_*.sha256")), containers[-1])
    containers[-1].signal(signal.SIGTERM)
    assert codes(containers) == [75] * len(pods), "\n".join(one.log.read_text()[-3000:] for one in containers)
    assert all(one.last_line().startswith("error: ") and "again" in one.last_line() for one in containers)
    assert not (folder / "model.pt").exists()
    containers = start()
    assert codes(containers) == [0] * len(pods), "\n".join(one.log.read_text()[-3000:] for one in containers)
    assert "resumed from" in "".join(one.log.read_text() for one in containers)
    assert same(weights(storage, "train"), expected)
