"""The daemon of a mount beneath which a test exchanges files, as following other devices does.

    python -m tests.mount.exchanging_daemon

``{"do": "exchange", "what": "replace", "folder": …, "name": …, "size": …}`` on the control socket
brings the bytes ``content_of(name, size)``. ``"tells": false`` leaves the kernel without the news.
"""

from __future__ import annotations

import sys

import trio

from cryptfs import daemon
from cryptfs.control import Message, send_message
from cryptfs.control_answers import Answers
from cryptfs.sync.replay import Followed
from tests.device import find
from tests.fs import exchanging
from tests.mount.mounting import content_of


class ExchangingAnswers(Answers):
    async def do(self, request: Message, stream: trio.SocketStream) -> None:
        if request.get("do") != "exchange":
            await super().do(request, stream)
            return
        vault, name = self._vault, request["name"].encode()
        parent = find(vault, request["folder"].encode()).id
        if request["what"] == "delete":
            await vault.settler.settle_all(lambda: None)
            touched = exchanging.delete(vault, name, parent)
        else:
            brought = await exchanging.bring(vault, content_of(request["name"], request["size"]))
            exchange = exchanging.replace if request["what"] == "replace" else exchanging.make
            touched = exchange(vault, name, brought, parent)
        if request.get("tells", True):
            await vault.on_followed(Followed(0, touched=touched))
        await send_message(stream, {"done": True, "numbers": bool(vault.fs.nodes)})


if __name__ == "__main__":
    daemon.Answers = ExchangingAnswers  # type: ignore[attr-defined, misc]
    sys.exit(daemon.main())
