"""Real servers on loopback, for the remotes that speak to one."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cheroot import wsgi
from moto.server import ThreadedMotoServer
from wsgidav.fs_dav_provider import FileResource, FilesystemProvider
from wsgidav.wsgidav_app import WsgiDAVApp

from tests.remotes.logins import KEYS, PASSWORD, USER

__all__ = ["KEYS", "PASSWORD", "USER", "moto_server", "rclone_server", "wsgidav_server"]


@contextmanager
def moto_server() -> Iterator[str]:
    """An S3 server; its address."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


class _Closing(FileResource):
    """A file that is closed, too, when the client who sent it went away. wsgidav leaves it open."""

    def begin_write(self, *, content_type: str | None = None) -> BinaryIO:
        self._written: BinaryIO = super().begin_write(content_type=content_type)
        return self._written

    def end_write(self, *, with_errors: bool) -> None:
        self._written.close()
        super().end_write(with_errors=with_errors)


class _Files(FilesystemProvider):
    def get_resource_inst(self, path: str, environ: dict[str, Any]) -> Any:
        found = super().get_resource_inst(path, environ)
        if isinstance(found, FileResource):
            return _Closing(path, environ, found._file_path)
        return found


@contextmanager
def wsgidav_server(folder: Path) -> Iterator[str]:
    """A WebDAV server for a folder, with a login; its address."""
    configuration = {
        "provider_mapping": {"/": _Files(str(folder), fs_opts={})},
        "simple_dc": {"user_mapping": {"*": {USER: {"password": PASSWORD}}}},
        "http_authenticator": {
            "accept_basic": True,
            "accept_digest": False,
            "default_to_digest": False,
        },
        "logging": {"enable": False},
        "verbose": 0,
    }
    server = wsgi.Server(("127.0.0.1", 0), WsgiDAVApp(configuration), numthreads=8)
    server.shutdown_timeout = 1
    server.prepare()
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.bind_addr[1]}"
    finally:
        server.stop()
        thread.join()


@contextmanager
def rclone_server(folder: Path) -> Iterator[str]:
    """``rclone serve webdav`` for a folder, without a login; its address."""
    assert shutil.which("rclone"), "rclone is missing; run: scripts/install test"
    command = ["rclone", "serve", "webdav", str(folder), "--addr", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, "--config", os.devnull], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    # Read on afterwards, by a thread: the pipe would fill up.
    reader = threading.Thread(target=process.stderr.read, daemon=True)
    try:
        lines = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stderr)
        found = next(filter(None, lines), None)
        assert found is not None, "rclone did not start"
        reader.start()
        yield found[0]
    finally:
        process.terminate()
        process.wait(timeout=10)
        if reader.ident is not None:
            reader.join()
        process.stderr.close()
