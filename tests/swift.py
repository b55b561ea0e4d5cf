"""A real S3 server on loopback for tests: OpenStack Swift, from PyPI, with one device on one disk."""

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

KEY, SECRET = "test:tester", "SKTEST"
_SERVERS = ("account", "container", "object", "proxy")
_START: float = 60.0
"""Seconds that servers may take to start."""
_FILTERS = {
    "catch_errors": "", "cache": "", "listing_formats": "", "copy": "", "slo": "",
    "tempauth": "user_test_tester = SKTEST .admin", "s3api": "s3_acl = false\nlocation = us-east-1",
}  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Swift:
    """The servers of one object store, all on loopback.

    Args:
        folder: Where the objects are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = {server: _free_port() for server in _SERVERS}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "disk" / "d1").mkdir(parents=True)
        self._configure()

    @property
    def url(self) -> str:
        """Of the S3 interface."""
        return f"http://127.0.0.1:{self._ports['proxy']}"

    def _configure(self) -> None:
        etc = self._folder
        (etc / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = b\n"
            "[storage-policy:0]\nname = Policy-0\ndefault = yes\n"
        )
        common = f"bind_ip = 127.0.0.1\nworkers = 0\nuser = {pwd.getpwuid(os.getuid()).pw_name}\nswift_dir = {etc}\n"
        for server in _SERVERS[:3]:
            builder, port = etc / f"{server}.builder", self._ports[server]
            for arguments in (["create", "6", "1", "1"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"], ["rebalance"]):
                subprocess.run([_program("ring-builder"), builder, *arguments], check=True, stdout=subprocess.DEVNULL)
            (etc / f"{server}.conf").write_text(
                f"[DEFAULT]\nbind_port = {port}\ndevices = {etc / 'disk'}\nmount_check = false\nfallocate_reserve = 0\n"
                f"recon_cache_path = {etc}\n{common}[pipeline:main]\npipeline = {server}-server\n"
                f"[app:{server}-server]\nuse = egg:swift#{server}\nreplication_server = false\n"
            )
        filters = "".join(f"[filter:{name}]\nuse = egg:swift#{_egg(name)}\n{more}\n" for name, more in _FILTERS.items())
        (etc / "proxy.conf").write_text(
            f"[DEFAULT]\nbind_port = {self._ports['proxy']}\n{common}[pipeline:main]\n"
            "pipeline = catch_errors cache listing_formats s3api tempauth copy slo proxy-server\n"
            f"[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n{filters}"
        )

    def start(self) -> None:
        """Start what is not running, and wait until all answer."""
        for server in _SERVERS:
            if server not in self._running:
                log = (self._folder / f"{server}.log").open("ab")
                command = [_program(f"{server}-server"), str(self._folder / f"{server}.conf")]
                self._running[server] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        began = time.monotonic()
        for server, port in self._ports.items():
            while not _answers(port):
                assert time.monotonic() - began < _START, (self._folder / f"{server}.log").read_text()[-2000:]
                time.sleep(0.1)

    def kill(self, *servers: str) -> None:
        """End servers at once; without names, all of them."""
        for server in servers or tuple(self._running):
            process = self._running.pop(server)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def freeze(self) -> None:
        """The proxy takes connections and never answers."""
        os.killpg(self._running["proxy"].pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """The proxy goes on."""
        os.killpg(self._running["proxy"].pid, signal.SIGCONT)


def _egg(name: str) -> str:
    return "memcache" if name == "cache" else name


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(f"swift-{name}"))


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
