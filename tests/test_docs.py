"""The pages: every command, option, key and path that they name exists."""

import ast
import itertools
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

from bundle.commands import pacs
from bundle.commands.main import _COMMANDS
from bundle.overrides import check_options, load_config, parse_command_line

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "models" / "README.md", *(ROOT / "docs").glob("*.md")])
FOLDERS = ("bundle", "configs", "docs", "k8s", "models", "scripts", "tests", ".github")
WORKFLOWS = {"training": "train", "inference": "inference", "evaluation": "evaluate"}
# What readers put in place of capitals, and shells in place of variables.
STANDS_FOR = re.compile(r"^[A-Z][A-Z_]*$|\.\.\.|\$")
# Words of other programs, a test's data set, and a row whose name is made up of its number.
FOREIGN = {"ttl_seconds", "weights_only", "network_def", "user_list", "state_dict", "use_trace"}
FOREIGN |= {"ge_head_tilt", "mean_of_4_flips", "no_denoiser", "no_refiner"}


def page_id(path):
    return path.relative_to(ROOT).as_posix()


def code_lines(page):
    """Lines of code blocks, continued lines joined, comments and prompts off."""
    text = page.read_text().replace("\\\n", " ")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    indented = re.findall(r"^    (\S.*)$", re.sub(r"^```\w*\n.*?^```", "", text, flags=re.M | re.S), re.M)
    inline = re.findall(r"`([^`\n]+)`", text)
    for line in [*"\n".join(fenced).splitlines(), *indented, *inline]:
        line = line.strip().removeprefix("$ ")
        if line and not line.startswith("#"):
            yield line


def commands(page, *start):
    """Arguments of the commands of a page that start so."""
    for line in code_lines(page):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # an apostrophe in prose
            continue
        words = words[1:] if words and words[0].endswith("/python") and start[0] == "python" else words
        begin = list(start[1:] if line.split()[0].endswith("/python") else start)
        if words[: len(begin)] == begin and len(words) > len(begin):
            yield words[len(begin) :]


@cache
def config(name):
    return load_config([ROOT / "configs" / f"{name}.yaml"])


def options_of(words):
    return [word[2:].partition("=")[0] for word in words if word.startswith("--")]


def runs(page):
    for package in ("bundle", "monai.bundle"):
        for words in commands(page, "python", "-m", package):
            if "run" in words:
                yield words[words.index("run") + 1 :]
    for words in executed(page):
        if words[:4] == ["python", "-m", "bundle", "run"]:
            yield words[4:]


def executed(page):
    """Commands that a page has run in a pod."""
    for words in commands(page, "kubectl", "exec"):
        if "--" in words:
            yield words[words.index("--") + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_run_commands_have_configs_and_options_that_exist(page):
    for words in runs(page):
        words = [word for word in words if word != "..."]
        if not options_of(words) or STANDS_FOR.search(words[0]):
            continue  # `run training`, in passing
        words = [word.replace("configs/", f"{ROOT}/configs/") for word in words]
        line = parse_command_line([word.replace("/workspace/", f"{ROOT}/k8s/base/") for word in words])
        assert line.config_files, words
        merged = load_config(line.config_files)
        assert line.positionals[0] in merged, words
        check_options([option for option in line.options if option != "args_file"], merged)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_of_the_bundle_exist(page):
    for words in commands(page, "python", "-m", "bundle"):
        if words[0].startswith("--"):
            assert words[0] in ("--help", "--version")
        elif not STANDS_FOR.search(words[0]):
            assert words[0] in (*_COMMANDS, "enhance"), words
    for words in [*commands(page, "ct-enhance"), *commands(page, "python", "-m", "bundle", "enhance")]:
        own = (ROOT / "bundle" / "commands" / "enhance.py").read_text()  # the switches that are no keys
        named = [one for one in options_of(words) if one not in ("help", "version") and f'"{one}"' not in own]
        check_options(named, config("inference"))
    for words in commands(page, "python", "-m", "bundle", "pacs"):
        check_options([one for one in options_of(words) if one not in pacs.OPTIONS], config("inference"))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_make_targets_and_scripts_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {words[0] for words in commands(page, "make") if re.fullmatch("[a-z-]+", words[0])} <= targets
    for words in commands(page, "python"):
        if words[0].startswith("scripts/"):
            text = (ROOT / words[0]).read_text()
            assert [one for one in options_of(words) if f"--{one}" not in text] == [], words


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_paths_exist(page):
    for word in re.findall(r"`([\w./-]+)`", page.read_text()):
        if word.split("/")[0] in FOLDERS and "/" in word:
            assert (ROOT / word).exists(), word
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_kustomize_folders_exist(page):
    for words in commands(page, "kubectl"):
        for flag, folder in itertools.pairwise(words):
            if flag == "-k":
                assert (ROOT / folder / "kustomization.yaml").is_file(), folder


def lists_of_names(text):
    """A name, or names with spaces between them, as code writes lists of keys; nothing of a sentence."""
    return text.split() if re.fullmatch(r"[a-z0-9_ ]+", text) else []


@cache
def known_names():
    """Every key of the configs and manifests, and every name of the code; not what its comments and texts talk of."""
    found = set()
    for folder in ("configs", "k8s"):
        for path in (ROOT / folder).rglob("*.yaml"):
            found |= {path.stem, *re.findall(r"(\w+):", path.read_text())}
    for folder in ("bundle", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            found.add(path.stem)
            for node in ast.walk(ast.parse(path.read_text())):
                named = [getattr(node, field, None) for field in ("id", "attr", "arg", "name", "value")]
                found |= {word for name in named if isinstance(name, str) for word in lists_of_names(name)}
    return found


RECORDS = ("models/README.md", "docs/experiments.md")  # of what once was: their names may be gone


@pytest.mark.parametrize("page", [page for page in PAGES if page_id(page) not in RECORDS], ids=page_id)
def test_keys_exist(page):
    text = re.sub(r"^```\w*\n.*?^```", "", page.read_text(), flags=re.M | re.S)
    words = {word for word in re.findall(r"`(?:--)?([a-z]+(?:_[a-z0-9]+)+)(?=[` :=])", text)}
    assert words - known_names() - FOREIGN == set()


def test_the_pages_name_enough_to_be_worth_testing():
    assert sum(1 for page in PAGES for _ in runs(page)) > 10


def test_workflows_parse():
    """Workflows of the code host: every make target and every command that they call exists."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        assert {"name", "permissions", "jobs"} <= content.keys()
        steps = [step for job in content["jobs"].values() for step in job["steps"]]
        text = "\n".join(step.get("run", "") for step in steps)
        assert set(re.findall(r"^\s*make ([a-z-]+)", text, re.M)) <= targets
        assert set(re.findall(r"python\"? -m bundle ([a-z]+)", text)) <= {*_COMMANDS, "enhance"}
        for step in steps:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/x@v1"))


def test_supported_pythons_are_tested():
    workflow = yaml.safe_load((ROOT / ".github/workflows/checks.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = [one.rpartition(" ")[2] for one in project["classifiers"] if one.startswith("Programming Language")]
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == promised
    assert project["requires-python"] == f">={promised[0]}"
