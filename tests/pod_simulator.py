"""Runs the container of a manifest as a kubelet would, without a cluster: same command, variables, user and volumes.

Two engines: bubblewrap lays this checkout and this Python out as the image does (seconds, no build), podman takes the
built image. Both: no network, read-only root, no capabilities, only the volumes of the manifest.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from manifests import K8S, ROOT, built, config_map, expanded, ours, pods_of, size_in_bytes
from real_parts import missing

_NUMBER = itertools.count()


@dataclass(frozen=True)
class Image:
    """What k8s/Dockerfile says about a running container."""

    variables: dict[str, str]
    workdir: str
    folders: tuple[str, ...]

    @classmethod
    def read(cls) -> "Image":
        text = (K8S / "Dockerfile").read_text().rpartition("\nFROM ")[2].replace("\\\n", " ")
        variables = dict(re.findall(r"(\w+)=(\S+)", re.search(r"^ENV (.*)$", text, re.M)[1]))
        folders = re.search(r"mkdir -p ([^&\n]*)", text)[1].split()
        return cls(variables, re.search(r"^WORKDIR (\S+)$", text, re.M)[1], tuple(folders))


@dataclass(frozen=True)
class SmallVolume:
    """A volume of so many bytes that already holds some folders (read-only)."""

    size: int
    data: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Pod:
    """One pod of a manifest.

    Attributes:
        argv: command and arguments, variables expanded.
        variables: of the container.
        claims: name of a claim by mount path.
        files: content by file name, by mount path: ConfigMaps.
        empty: bytes by mount path: emptyDirs.
        user: numeric user and group.
        grace_seconds: between SIGTERM and SIGKILL.
        memory: bytes.
    """

    argv: tuple[str, ...]
    variables: dict[str, str]
    claims: dict[str, str]
    files: dict[str, dict[str, str]]
    empty: dict[str, int]
    user: int
    grace_seconds: int
    memory: int

    def without(self, path: str) -> "Pod":
        """The same pod with one volume not mounted."""
        return dataclasses.replace(self, claims={key: value for key, value in self.claims.items() if key != path})


def pod_of_folder(
    folder: str, *, index: int | None = None, cpus: int = 1, secrets: dict[str, str] | None = None
) -> Pod:
    """The pod that a kustomize folder starts.

    Args:
        folder: below k8s/.
        index: of an Indexed Job.
        cpus: what limits.cpu gives; one, as tests share their machine.
        secrets: values by key, for variables from a Secret.
    """
    documents = built(folder)
    spec = next(pod for document in documents for pod in pods_of(document) if ours(pod))
    (container,) = ours(spec)
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    variables: dict[str, str] = {} if index is None else {"JOB_COMPLETION_INDEX": str(index)}
    for one in container.get("env", ()):
        source = one.get("valueFrom", {})
        if "value" in one:
            variables[one["name"]] = expanded([one["value"]], variables)[0]
        elif "resourceFieldRef" in source:
            assert source["resourceFieldRef"]["resource"] == "limits.cpu"
            variables[one["name"]] = str(cpus)
        elif "secretKeyRef" in source and secrets and source["secretKeyRef"]["key"] in secrets:
            variables[one["name"]] = secrets[source["secretKeyRef"]["key"]]
    paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    maps = {one["metadata"]["name"]: one["data"] for one in documents if one["kind"] == "ConfigMap"}
    claims, files, empty = {}, {}, {}
    for volume in spec["volumes"]:
        path = paths[volume["name"]]
        if "persistentVolumeClaim" in volume:
            claims[path] = volume["persistentVolumeClaim"]["claimName"]
        elif "configMap" in volume:
            files[path] = maps[volume["configMap"]["name"]]
        elif "emptyDir" in volume:
            empty[path] = size_in_bytes(volume["emptyDir"]["sizeLimit"])
    assert config_map(documents), "an overlay without overrides"
    return Pod(
        argv=(*container["command"], *expanded(container.get("args", []), variables)),
        variables=variables,
        claims=claims,
        files=files,
        empty=empty,
        user=spec["securityContext"]["runAsUser"],
        grace_seconds=spec["terminationGracePeriodSeconds"],
        memory=size_in_bytes(container["resources"]["limits"]["memory"]),
    )


class Container:
    """A running container; its output is in `log`."""

    def __init__(self, process: subprocess.Popen, log: Path) -> None:
        self.process, self.log = process, log

    def signal(self, number: int) -> None:
        """Send a signal to process 1 of the container."""
        raise NotImplementedError

    def wait(self, seconds: float = 1200) -> int:
        """The exit code as the kubelet sees it."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.process.wait(30)
            pytest.fail(f"the container did not end:\n{self.log.read_text()[-3000:]}")

    def last_line(self) -> str:
        """What terminationMessagePolicy FallbackToLogsOnError shows a user."""
        return ([line for line in self.log.read_text().splitlines() if line.strip()] or [""])[-1]


class Bubblewrap:
    """This checkout, laid out as the image is."""

    name = "bubblewrap"

    def __init__(self, scratch: Path) -> None:
        self.program = shutil.which("bwrap") or missing("bubblewrap is not installed (Debian: bubblewrap)")
        if subprocess.run([self.program, "--ro-bind", "/", "/", "true"], capture_output=True).returncode:
            missing("bubblewrap may not make namespaces on this machine")
        self.scratch, self.image = scratch, Image.read()

    def start(
        self,
        pod: Pod,
        claims: dict[str, Path | SmallVolume],
        *,
        network: bool = False,
        hosts: Sequence[str] = (),
    ) -> Container:
        """Start a pod; `network` leaves it the machine's, for servers on loopback, which `hosts` are names of."""
        number = next(_NUMBER)
        options = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--as-pid-1", "--clearenv"]
        options += [] if network else ["--unshare-net"]
        options += self._system()
        for path in self.image.folders:
            options += ["--perms", "0755", "--dir", path]
        for path, name in pod.claims.items():
            options += self._claim(path, claims[name], pod.user)
        for path, contents in pod.files.items():
            options += ["--ro-bind", str(self._folder(contents, number)), path]
        for path, size in pod.empty.items():
            options += ["--size", str(size), "--perms", "1777", "--tmpfs", path]
        if hosts:
            names = self._folder({"hosts": f"127.0.0.1 localhost {' '.join(hosts)}\n"}, number) / "hosts"
            options += ["--ro-bind", str(names), "/etc/hosts"]
        options += ["--remount-ro", "/", "--chdir", self.image.workdir]
        for name, value in {**self.image.variables, **pod.variables}.items():
            options += ["--setenv", name, value.replace("$PATH", "/usr/bin:/bin")]
        log = self.scratch / f"pod-{number}.log"
        read, write = os.pipe()
        with log.open("w") as stream:
            process = subprocess.Popen(
                [self.program, "--info-fd", str(write), *options, *self._as_user(pod.user), *pod.argv],
                stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, pass_fds=[write],
            )  # fmt: skip
        os.close(write)
        with os.fdopen(read) as info:
            text = info.read()
        assert text, log.read_text()
        return _Wrapped(process, log, json.loads(text)["child-pid"])

    def _system(self) -> list[str]:
        options = ["--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc", "--proc", "/proc", "--dev", "/dev"]
        for name in ("bin", "sbin", "lib", "lib64"):
            if Path("/", name).is_symlink():
                options += ["--symlink", f"usr/{name}", f"/{name}"]
        base = [] if sys.base_prefix.startswith("/usr") else [Path(sys.base_prefix)]
        # Parents that bubblewrap makes by itself are closed to others.
        for path in ["/opt", self.image.workdir, "/workspace", *(up for at in base for up in [*at.parents][-2::-1])]:
            options += ["--perms", "0755", "--dir", str(path)]
        options += [part for at in base for part in ("--ro-bind", str(at), str(at))]
        options += ["--ro-bind", sys.prefix, "/opt/venv"]
        for name in ("bundle", "configs", "models"):
            options += ["--ro-bind", str(ROOT / name), f"{self.image.workdir}/{name}"]
        return options

    def _claim(self, path: str, volume: Path | SmallVolume, user: int) -> list[str]:
        if isinstance(volume, SmallVolume):
            options = ["--size", str(volume.size), "--perms", "0777", "--tmpfs", path]
            return options + [
                part for name, at in volume.data.items() for part in ("--ro-bind", str(at), f"{path}/{name}")
            ]
        return ["--bind", str(volume), path]

    def _as_user(self, user: int) -> list[str]:
        """Options that end in the command's start: bubblewrap's own --uid only renames a user to itself."""
        if os.getuid() != 0:
            return ["--unshare-user", "--uid", str(user), "--gid", str(user), "--cap-drop", "ALL", "--"]
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        return ["--", *as_user, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--"]

    def _folder(self, contents: dict[str, str], number: int) -> Path:
        folder = self.scratch / f"files-{number}-{next(_NUMBER)}"
        folder.mkdir(mode=0o755)
        for name, text in contents.items():
            (folder / name).write_text(text)
        return folder


class _Wrapped(Container):
    def __init__(self, process: subprocess.Popen, log: Path, leaf: int) -> None:
        super().__init__(process, log)
        self.leaf = leaf

    def signal(self, number: int) -> None:
        os.kill(self.leaf, number)


class Podman:
    """The built image; `command` is podman with its options."""

    name = "podman"

    def __init__(self, scratch: Path, command: list[str], image: str, environment: dict[str, str]) -> None:
        self.scratch, self.command, self.image, self.environment = scratch, command, image, environment

    def start(self, pod: Pod, claims: dict[str, Path]) -> Container:
        """Start a pod of the image."""
        number = next(_NUMBER)
        name = f"ct-enhance-test-{os.getpid()}-{number}"
        options = [
            "--rm",
            "--name",
            name,
            "--network",
            "none",
            "--read-only",
            "--read-only-tmpfs=false",
        ]
        options += ["--user", f"{pod.user}:{pod.user}", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        options += ["--memory", str(pod.memory), "--entrypoint", pod.argv[0]]
        for path, claim in pod.claims.items():
            options += ["-v", f"{claims[claim]}:{path}"]
        for path, contents in pod.files.items():
            folder = self.scratch / f"files-{number}-{len(contents)}"
            folder.mkdir(mode=0o755)
            for file, text in contents.items():
                (folder / file).write_text(text)
            options += ["-v", f"{folder}:{path}:ro"]
        for path, size in pod.empty.items():
            options += ["--tmpfs", f"{path}:rw,size={size},mode=1777"]
        for key, value in pod.variables.items():
            options += ["--env", f"{key}={value}"]
        log, pid_file = (self.scratch / f"pod-{number}.{kind}" for kind in ("log", "pid"))
        options += ["--pidfile", str(pid_file)]
        with log.open("w") as stream:
            process = subprocess.Popen(
                [*self.command, "run", *options, self.image, *pod.argv[1:]],
                stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self.environment,
            )  # fmt: skip
        return _Played(process, log, self, name, pid_file)


class _Played(Container):
    def __init__(self, process: subprocess.Popen, log: Path, engine: Podman, name: str, pid_file: Path) -> None:
        super().__init__(process, log)
        self.engine, self.container, self.pid_file = engine, name, pid_file

    def signal(self, number: int) -> None:
        with contextlib.suppress(OSError, ValueError):  # at once, where the container's processes are ours to signal
            os.kill(int(self.pid_file.read_text()), number)
            return
        command = [*self.engine.command, "kill", "--signal", str(int(number)), self.container]
        subprocess.run(command, check=True, capture_output=True, env=self.engine.environment)


def volume(folder: Path, user: int) -> Path:
    """Give a claim's folder to the pod's user, as fsGroup does."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    if os.getuid() == 0:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, user, user)
    return folder
