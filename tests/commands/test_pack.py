"""The archive in the hands of its consumers, in a process that finds neither this checkout nor an installation."""

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from bundle.commands.pack import NAME, pack, write_archive
from bundle.configuration import bundle_root
from bundle.errors import BundleError

ROOT = Path(bundle_root())
ASSETS = Path(__file__).parents[1] / "assets"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    target = tmp_path_factory.mktemp("pack") / "bundle.zip"
    write_archive(target, root=ROOT)
    return target


@pytest.fixture(scope="module")
def unpacked(archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    return folder / NAME


def test_holds_what_the_specification_asks_for(unpacked):
    for name in ("LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt", "docs/README.md"):
        assert (unpacked / name).is_file(), name
    assert (unpacked / "bundle" / "networks" / "restorer.py").is_file()
    assert not list(unpacked.rglob("__pycache__")) and not (unpacked / "bundle" / "_bundle").exists()
    assert (unpacked / "models" / "model.pt").read_bytes() == (ROOT / "models" / "model.pt").read_bytes()


def test_same_content_same_archive(archive, tmp_path):
    assert write_archive(tmp_path / "again.zip", root=ROOT)
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "OUTPUT is required"),
        (["out.tar"], "must end in .zip"),
        (["out.zip", "--torch"], "unexpected argument '--torch'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(BundleError, match=message):
        pack(arguments)


def test_without_weights(tmp_path):
    with pytest.raises(BundleError, match="is missing"):
        write_archive(tmp_path / "out.zip", root=tmp_path)
    assert not list(tmp_path.iterdir())


def elsewhere(script: str, cwd: Path, *arguments: object) -> str:
    """Run a script with the libraries but without their .pth files: an editable install is not found."""
    libraries = sysconfig.get_paths()["purelib"]
    text = f"import sys; sys.path.append({libraries!r})\nimport torch; torch.set_num_threads(1)\n{script}"
    command = [sys.executable, "-S", "-W", "ignore", "-c", text, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


LOAD = """
import importlib.util
assert importlib.util.find_spec("bundle") is None
from pathlib import Path
import monai.bundle
root = Path(sys.argv[1])
network = monai.bundle.load(root.name, bundle_dir=str(root.parent), source="github")
import bundle
assert Path(bundle.__file__).is_relative_to(root), bundle.__file__
expected = torch.load(root / "models" / "model.pt", weights_only=True)
assert all(torch.equal(value, expected[key].to(value)) for key, value in network.state_dict().items())
print(type(network).__name__)
"""

WORKFLOW = """
import importlib.util
assert importlib.util.find_spec("bundle") is None
from monai.bundle import ConfigWorkflow
for kind, run_id, name in (("infer", "inference", "inference"), ("train", "training", "train")):
    workflow = ConfigWorkflow(
        config_file=f"{sys.argv[1]}/configs/{name}.{sys.argv[2]}",
        workflow_type=kind,
        run_id=run_id,
        logging_file=False,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    print(type(workflow.network_def if kind == "infer" else workflow.trainer).__name__)
"""

# What monailabel/tasks/infer/bundle.py does: path first, config parsed by itself, then the parts by their names.
MONAI_LABEL = """
import json
from monai.bundle import ConfigParser
path = sys.argv[1]
sys.path.insert(0, path)
config = ConfigParser()
config.read_config(f"{path}/configs/inference.json")
config.config.update({"bundle_root": path})
network = config.get_parsed_content("network_def", instantiate=True)
state = torch.load(f"{path}/models/model.pt", weights_only=True)
network.load_state_dict(state.get("model", state))
metadata = json.load(open(f"{path}/configs/metadata.json"))
image, about = next(iter(metadata["network_data_format"]["inputs"].items()))
pre = config.get_parsed_content("preprocessing", instantiate=True).transforms
inferer = config.get_parsed_content("inferer", instantiate=True)
hu = torch.full((1, 1, 32, 40, 3), -1000.0)
hu[:, :, 4:, 4:] = 40 + 30 * torch.randn(1, 1, 28, 36, 3)
with torch.no_grad():
    out = inferer(hu, network.eval())
assert out.shape == hu.shape and torch.isfinite(out).all()
print(image, len(about["spatial_shape"]), len(pre))
"""

# The steps of the model zoo's ci/verify_bundle.py, mode full, none left out.
MODEL_ZOO = """
import json, os
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out
path, rules, suffix = sys.argv[1:]
sys.path = [path] + sys.path
for name in ("configs/metadata.json", "LICENSE", "models/model.pt", "configs/inference.json"):
    assert os.path.exists(os.path.join(path, name)), name
metadata = json.load(open(f"{path}/configs/metadata.json"))
assert metadata["version"] in metadata["changelog"]
# Its installation writes one requirement for each of these, and pip reads them.
from packaging.requirements import Requirement
for name, key in (("monai", "monai_version"), ("torch", "pytorch_version"), ("numpy", "numpy_version")):
    Requirement(f"{name}=={metadata[key]}")
for name, version in metadata["required_packages_version"].items():
    Requirement(f"{name}=={version}")
verify_metadata(meta_file=f"{path}/configs/metadata.json", filepath=rules)
config = f"{path}/configs/inference.{suffix}"
verify_net_in_out(net_id="network_def", meta_file=f"{path}/configs/metadata.json", config_file=config, bundle_root=path)
ckpt_export(
    net_id="network_def",
    filepath=f"{path}/models/verify_model.ts",
    ckpt_file=f"{path}/models/model.pt",
    meta_file=f"{path}/configs/metadata.json",
    config_file=config,
    bundle_root=path,
)
# MONAI Deploy (monai_bundle_inference_operator.py) takes the configs out of the archive that a .ts file is.
import zipfile
with zipfile.ZipFile(f"{path}/models/verify_model.ts") as archive:
    names = archive.namelist()
    assert all(f"verify_model/extra/{name}" in names for name in ("metadata.json", "inference.json")), names
module = torch.jit.load(f"{path}/models/verify_model.ts").eval()
with torch.no_grad():
    assert module(torch.zeros(1, 1, 40, 24, 3)).shape == (1, 1, 40, 24, 3)
print("verified")
"""


@pytest.mark.full
def test_monai_bundle_load(unpacked, tmp_path):
    assert elsewhere(LOAD, tmp_path, unpacked).split()[-1] == "Restorer"


@pytest.mark.full
@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_config_workflow(suffix, unpacked, tmp_path):
    assert "Restorer" in elsewhere(WORKFLOW, tmp_path, unpacked, suffix)


@pytest.mark.full
def test_as_monai_label_reads_it(unpacked, tmp_path):
    assert elsewhere(MONAI_LABEL, tmp_path, unpacked).split()[:2] == ["image", "3"]


@pytest.mark.full
@pytest.mark.parametrize("suffix", ["json", "yaml"])  # it takes the YAML where a bundle has both
def test_as_the_model_zoo_and_monai_deploy_read_it(suffix, unpacked, tmp_path):
    rules = ASSETS / "meta_schema_20240725_rules.json"
    assert elsewhere(MODEL_ZOO, tmp_path, unpacked, rules, suffix).split()[-1] == "verified"


@pytest.mark.full
def test_as_nvflare_reads_it(unpacked, tmp_path):
    # monai.fl.client.MonaiAlgo, which NVFLARE's client runs: train.json, then train.json + evaluate.json.
    script = """
from monai.fl.client import MonaiAlgo
algo = MonaiAlgo(
    bundle_root=sys.argv[1],
    config_evaluate_filename=None,
    send_weight_diff=False,
    train_kwargs={"output_dir": sys.argv[2] + "/out"},
)
algo.initialize(extra={"CLIENT_NAME": "site"})
print(type(algo.trainer).__mro__[1].__name__, len(algo.get_weights().weights))
"""
    trainer, weights = elsewhere(script, tmp_path, unpacked, tmp_path).split()[-2:]
    assert trainer == "SupervisedTrainer" and int(weights) > 100


def test_packed_configs_differ_in_one_expression(unpacked):
    for name in ("train", "inference", "evaluate"):
        ours = json.loads((ROOT / "configs" / f"{name}.json").read_text())
        packed = json.loads((unpacked / "configs" / f"{name}.json").read_text())
        assert packed.pop("initialize")[1:] == ours.pop("initialize")
        assert packed == ours
