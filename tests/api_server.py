"""A real API server with its store, no node, no controller: what it says to a manifest is what a cluster says."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from manifests import tool

ASSETS = "KUBEBUILDER_ASSETS"
_LATEST_S = 120.0


def assets() -> Path:
    """The folder with etcd and kube-apiserver, or a skip that says what is lacking."""
    named = os.environ.get(ASSETS)
    if not named:
        pytest.skip(f"{ASSETS} names no folder with etcd and kube-apiserver (setup-envtest gets one)")
    lacking = [name for name in ("etcd", "kube-apiserver") if not (Path(named) / name).is_file()]
    if lacking:
        pytest.skip(f"{ASSETS} has no {' and no '.join(lacking)}")
    return Path(named)


class ApiServer:
    """Started servers; `kubectl` talks to them."""

    def __init__(self, folder: Path, port: int, token: str) -> None:
        self.folder = folder
        config = {"server": f"https://127.0.0.1:{port}", "token": token}
        self._options = [f"--{key}={value}" for key, value in config.items()]
        self._options += [
            "--insecure-skip-tls-verify",
            "--kubeconfig",
            str(folder / "none"),
            "--cache-dir",
            str(folder / "cache"),
        ]

    def kubectl(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl against the server."""
        command = [tool("kubectl"), *self._options, *arguments]
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)

    def tried(self, text: str) -> subprocess.CompletedProcess[str]:
        """Apply documents without keeping them: decoded, defaulted, validated and admitted as for real."""
        return self.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", text=text)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[ApiServer]:
    """etcd and kube-apiserver on loopback, ended at the end; their output is in `folder`."""
    programs = assets()
    etcd_port, peer_port, port = _free_ports(3)
    (folder / "none").write_text("")
    key, tokens, token = folder / "account.key", folder / "tokens.csv", "of-this-test"
    subprocess.run([tool("openssl"), "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    tokens.write_text(f'{token},tester,1,"system:masters"\n')
    etcd = f"http://127.0.0.1:{etcd_port}"
    commands = {
        "etcd": {
            "data-dir": folder / "etcd",
            "listen-client-urls": etcd,
            "advertise-client-urls": etcd,
            "listen-peer-urls": f"http://127.0.0.1:{peer_port}",
        },
        "kube-apiserver": {
            "etcd-servers": etcd,
            "cert-dir": folder / "certificates",
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "secure-port": port,
            "service-cluster-ip-range": "10.0.0.0/24",
            "service-account-issuer": f"https://127.0.0.1:{port}/",
            "service-account-key-file": key,
            "service-account-signing-key-file": key,
            "token-auth-file": tokens,
            "authorization-mode": "RBAC",
            "disable-admission-plugins": "ServiceAccount",  # its controller, which makes the accounts, does not run
        },
    }
    with contextlib.ExitStack() as stack:
        started = []
        for name, options in commands.items():
            log = stack.enter_context((folder / f"{name}.log").open("w"))
            command = [str(programs / name), *(f"--{key}={value}" for key, value in options.items())]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(_end, process)
            started.append((name, process))
        server = ApiServer(folder, port, token)
        until = time.monotonic() + _LATEST_S
        while server.kubectl("get", "namespace", "default").returncode:
            for name, process in started:
                if process.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"{name} does not serve:\n{(folder / f'{name}.log').read_text()[-3000:]}")
            time.sleep(0.5)
        yield server


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
