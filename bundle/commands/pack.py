"""`python -m bundle pack OUTPUT.zip`: the bundle as one archive, with its Python package, for other programs.

MONAI puts a bundle's folder on Python's search path when a workflow runs, which is after `imports` were evaluated;
`monai.bundle.load` never runs one. The packed configs therefore do it themselves, first of all in `initialize`.
"""

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bundle import __version__
from bundle.configuration import bundle_root
from bundle.errors import BundleError, ExitCode
from bundle.files import file_digest, whole_file

USAGE = "python -m bundle pack OUTPUT.zip [--torchscript true]"
NAME = "ct_enhancement"  # the folder in the archive, which is the bundle's name to monai.bundle.load
# First of `initialize`. The workflow is among the callers and knows where its configs are; the imports, which MONAI
# tried before anything else, are forgotten, so that it tries them again.
SEARCH_PATH = (
    "$[(__import__('sys').path.insert(0, str(w.config_root_path.resolve().parent)), "
    "[r.pop(k) for r in [w.parser.ref_resolver.resolved_content] for k in list(r) if k.startswith('imports')]) "
    "for w in [f.frame.f_locals.get('self') for f in __import__('inspect').stack(0)] "
    "if type(w).__name__ == 'ConfigWorkflow'][:0]"
)
_CONFIG_SUFFIXES = (".json", ".yaml", ".conf")
_TOP = ("LICENSE", "README.md", "CITATION.cff", "CHANGELOG.md", "requirements.txt", "pyproject.toml")
_STAMP = (2026, 1, 1, 0, 0, 0)  # of every member: the same content gives the same archive


def pack(arguments: Sequence[str]) -> int:
    """Write the archive that `arguments` name.

    Returns:
        The exit code.

    Raises:
        BundleError: when the arguments are wrong or the weights are missing.
    """
    if not arguments or arguments[0].startswith("--"):
        raise BundleError("OUTPUT is required", hint=USAGE)
    switches = list(arguments[1:])
    torchscript = switches in (["--torchscript"], ["--torchscript", "true"], ["--torchscript=true"])
    if switches and not torchscript and switches not in (["--torchscript", "false"], ["--torchscript=false"]):
        raise BundleError(f"unexpected argument '{switches[0]}'", hint=USAGE)
    target = Path(arguments[0])
    if target.suffix != ".zip":
        raise BundleError(f"OUTPUT '{target.name}' must end in .zip", hint=USAGE)
    digest = write_archive(target, root=Path(bundle_root()), torchscript=torchscript)
    print(f"packed {NAME} {__version__} into {target.name}, {target.stat().st_size / 1e6:.0f} MB, SHA-256 {digest}")
    return ExitCode.DONE


def write_archive(target: Path, *, root: Path, torchscript: bool = False) -> str:
    """Write the archive and return its SHA-256.

    Args:
        target: the ZIP.
        root: the bundle's root folder.
        torchscript: also trace models/model.ts, which MONAI Deploy reads.

    Raises:
        BundleError: when there are no weights.
    """
    if not (root / "models" / "model.pt").is_file():
        raise BundleError("models/model.pt is missing", hint="train first, then scripts/pack_weights.py")
    with whole_file(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in _members(root):
            _add(archive, name, _config(path) if name.startswith("configs/") else path.read_bytes())
        if torchscript:
            _add(archive, "models/model.ts", _torchscript(root, target.parent))
    return file_digest(target)


def _members(root: Path) -> Iterator[tuple[str, Path]]:
    """Names in the bundle and where they come from; a checkout has more than an installed package."""
    for name in _TOP:
        if (root / name).is_file():
            yield name, root / name
    for path in sorted((root / "configs").rglob("*")):
        if path.suffix in _CONFIG_SUFFIXES:
            yield f"configs/{path.relative_to(root / 'configs').as_posix()}", path
    for folder, suffixes in (("models", (".pt", ".json", ".md", ".yaml")), ("docs", (".md", ".txt", ".png"))):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in suffixes:
                yield f"{folder}/{path.relative_to(root / folder).as_posix()}", path
    package = Path(__file__).resolve().parents[1]
    for path in sorted(package.rglob("*")):
        inner = path.relative_to(package)
        if path.is_file() and not {"_bundle", "__pycache__"} & set(inner.parts):
            yield f"bundle/{inner.as_posix()}", path


def _config(path: Path) -> bytes:
    """A config that begins with the search path; other files as they are."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        content = json.loads(text)
        if "initialize" in content:
            content["initialize"] = [SEARCH_PATH, *content["initialize"]]
            text = json.dumps(content, indent=4) + "\n"
    elif path.suffix == ".yaml":
        text = text.replace("\ninitialize:\n", f'\ninitialize:\n- "{SEARCH_PATH}"\n', 1)
    return text.encode()


def _torchscript(root: Path, scratch: Path) -> bytes:
    """models/model.ts with metadata and config inside, as `monai.bundle ckpt_export` writes it."""
    import tempfile

    from monai.bundle import ckpt_export

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        file = Path(folder) / "model.ts"
        ckpt_export(
            net_id="network_def",
            filepath=str(file),
            ckpt_file=str(root / "models" / "model.pt"),
            meta_file=str(root / "configs" / "metadata.json"),
            config_file=str(root / "configs" / "inference.json"),
        )
        return file.read_bytes()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    member = zipfile.ZipInfo(f"{NAME}/{name}", date_time=_STAMP)
    member.external_attr = 0o644 << 16
    member.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(member, content)
