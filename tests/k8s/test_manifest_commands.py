"""The commands of the manifests are the bundle's: their options exist, and their values pass its checks."""

import re
from functools import cache
from pathlib import Path

import pytest
from manifests import (
    K8S,
    OVERRIDES,
    ROOT,
    WORKLOADS,
    built,
    config_map,
    environment,
    expanded,
    ours,
    pods_of,
    size_in_bytes,
)

from bundle.commands import main, pacs
from bundle.errors import BundleError, find_bundle_error
from bundle.overrides import CommandLine, check_options, load_config, load_config_file, parse_command_line

PET = ("NNODES", "NODE_RANK", "NPROC_PER_NODE", "MASTER_ADDR", "MASTER_PORT")  # set by Kubeflow Trainer


@cache
def containers(folder):
    """The containers of a folder that run the bundle."""
    return [c for document in built(folder) for pod in pods_of(document) for c in ours(pod) if "args" in c]


def run_line(folder, target):
    """What `run` gets in a folder's container, with this checkout and the folder's overrides in their places."""
    for name, text in config_map(built(folder)).items():
        (target / name).write_text(text)
    (container,) = containers(folder)
    assert container["command"] == ["python", "-m", "bundle"] and container["args"][0] in main._COMMANDS
    given = {"JOB_COMPLETION_INDEX": "0"} | {f"PET_{name}": "1" for name in PET}
    arguments = expanded(container["args"], given | environment(container))
    assert "$(" not in " ".join(arguments)
    arguments = arguments[arguments.index("run") + 1 :]  # a launcher's own options stand before
    arguments = [argument.replace("configs/", f"{ROOT}/configs/") for argument in arguments]
    return parse_command_line([argument.replace(f"{OVERRIDES}/", f"{target}/") for argument in arguments])


RUNNING = [folder for folder in WORKLOADS if "interactive" not in folder and folder != "overlays/pacs"]
LAUNCHED = [folder for folder in RUNNING if "multi" in folder or folder.endswith(("jobset", "trainjob"))]


@pytest.mark.parametrize("folder", RUNNING)
def test_every_option_exists_in_the_config(folder, tmp_path):
    line = run_line(folder, tmp_path)
    config = load_config(line.config_files)
    assert len(line.positionals) == 1 and line.positionals[0] in config
    check_options(line.options, config)
    assert {"dataset_dir", "output_dir"} <= line.options.keys()
    # The overrides are those of the config.
    assert Path(line.config_files[0]).name == Path(line.options["args_file"]).name


def test_the_worker_of_the_pacs_loop_takes_its_options(tmp_path):
    (container,) = containers("overlays/pacs")
    for name, text in config_map(built("overlays/pacs")).items():
        (tmp_path / name).write_text(text)
    command, *arguments = container["args"]
    line = parse_command_line([argument.replace(OVERRIDES, str(tmp_path)) for argument in arguments])
    assert command == "pacs" and not line.positionals
    own = {key: value for key, value in line.options.items() if key in pacs.OPTIONS}
    assert {"url", "work_dir", "settle_seconds"} == own.keys()
    check_options(line.options.keys() - own.keys(), load_config([ROOT / "configs" / "inference.yaml"]))
    assert line.options["weights_file"] == run_line("inference", tmp_path).options["weights_file"]
    (service,) = [one for one in built("overlays/pacs") if one["kind"] == "Service"]
    name, port = re.fullmatch(r"http://([\w-]+):(\d+)/dicom-web", own["url"]).groups()
    assert service["metadata"]["name"] == name and int(port) in {one["port"] for one in service["spec"]["ports"]}


@pytest.mark.parametrize("path", sorted(K8S.rglob("overrides/*.yaml")), ids=lambda p: p.relative_to(K8S).as_posix())
def test_overrides_are_keys_of_the_config(path):
    launched = f"overlays/{path.parents[1].name}" in LAUNCHED
    files = [ROOT / "configs" / path.name] + [ROOT / "configs" / "multi_gpu.yaml"] * launched
    check_options(load_config_file(path), load_config(files))


@pytest.fixture
def on_a_v100(monkeypatch):
    """A machine with the least GPU that the overlays are for, as far as checks before the first step ask."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_70"])


def check_values(line):
    """What a run checks of its settings before it reads data: ranges, modes, presets, and whether patches fit."""
    from monai.bundle import ConfigWorkflow

    from bundle.training.limits import require_ranges

    options = {key: value for key, value in line.options.items() if key not in ("config_file", "args_file")}
    meta = {"meta_file": str(ROOT / "configs" / "metadata.json"), "logging_file": None, "workflow_type": "train"}
    workflow = ConfigWorkflow(config_file=line.config_files, run_id=line.positionals[0], **meta, **options)
    content = workflow.parser.get_parsed_content
    content("inferer" if "inference" in line.positionals else "precision")
    restorer = content("network_def")
    if "training" in line.positionals:
        require_ranges(**content("ranged"))
        assert options.get("patch_size", 0) % restorer.multiple == 0


@pytest.mark.parametrize("folder", RUNNING)
def test_every_value_passes_the_checks_of_its_config(folder, tmp_path, on_a_v100):
    check_values(run_line(folder, tmp_path))


@pytest.mark.parametrize(
    ("key", "value"), [("mixed_precision", "fp8"), ("batch_size", "many"), ("preset", "big"), ("checkpoint_every", -1)]
)
def test_a_wrong_value_is_found(key, value, tmp_path, on_a_v100):
    line = run_line("overlays/train-1gpu", tmp_path)
    with pytest.raises((BundleError, RuntimeError)) as caught:  # MONAI's, around ours
        check_values(CommandLine(line.positionals, line.options | {key: value}))
    assert key in str(find_bundle_error(caught.value))


def test_a_misspelt_option_is_found(tmp_path):
    line = run_line("train", tmp_path)
    with pytest.raises(BundleError, match="batch_size"):
        check_options(CommandLine((), line.options | {"batchsize": 2}).options, load_config(line.config_files))


def test_inference_takes_what_training_leaves_and_does_not_fail_for_one_bad_series(tmp_path):
    training = run_line("train", tmp_path).options
    for folder in ("inference", "overlays/inference", "nightly"):
        inference = run_line(folder, tmp_path).options
        assert inference["weights_file"] == f"{training['output_dir']}/model.pt"
        assert str(inference["tolerate_bad_series"]).lower() == "true"
        assert inference["preset"] == training["preset"]


def test_the_smoke_test_writes_apart_from_the_real_training(tmp_path):
    smoke = run_line("overlays/cpu-smoke", tmp_path).options
    assert smoke["output_dir"] != run_line("train", tmp_path).options["output_dir"]
    assert smoke["device"] == "cpu"


def test_data_of_the_hub_fit_the_volume(tmp_path):
    """Archives at a time, a prepared case of 300 slices for each archive, and checkpoints (docs/kubernetes.md)."""
    options = run_line("overlays/train-hub", tmp_path).options
    config = load_config([ROOT / "configs" / "train.yaml"])
    case = 300 * 512**2 * (2 + 4 * options.get("noise_realisations", config["noise_realisations"]))
    taken = options["archive_gigabytes"] * 1e9 + options["max_samples"] * case + 2e9
    (claim,) = built("storage")
    assert taken < size_in_bytes(claim["spec"]["resources"]["requests"]["storage"])


def test_gpus_are_asked_for_by_their_overlays_only(tmp_path):
    for folder in RUNNING:
        (container,) = containers(folder)
        asked = container["resources"]["limits"].get("nvidia.com/gpu", 0)
        # Without a GPU the container then ends at once rather than spending days on a CPU.
        options = run_line(folder, tmp_path).options
        assert (asked > 0) == (options.get("device") == "cuda" or options.get("backend") == "nccl"), folder
        # Each of several processes has a device of its own.
        assert (folder in LAUNCHED) == ("launch" in container["args"]) == ("backend" in options)
