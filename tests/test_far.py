"""The proxy that makes a server far away, which ``scripts/bench sync`` measures through."""

from __future__ import annotations

import os
import time
from pathlib import Path

import httpx

from scripts.benchmark.far import Distance, far_server
from tests.remotes.servers import rclone_server

FAR = Distance(latency_seconds=0.02, creates_per_second=20)


def test_it_passes_on_counts_and_takes_its_time(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    with rclone_server(tmp_path) as near, far_server(near, FAR) as far:
        with httpx.Client(trust_env=False) as client:
            start = time.perf_counter()
            for number in range(4):
                assert client.put(f"{far.address}/{number}", content=data).status_code == 201
            # The first is on its way for the latency, each of the others waits for its turn.
            assert time.perf_counter() - start >= 0.02 + 3 / 20
            assert (tmp_path / "3").read_bytes() == data
            assert far.seen.requests == 4
            assert far.seen.sent_bytes > 4 * len(data)
            assert far.seen.received_bytes < 10_000
            far.forget()
            assert (
                client.get(f"{far.address}/2", headers={"Range": "bytes=7-1000006"}).content
                == (data[7:1_000_007])
            )
            assert client.head(f"{far.address}/2").headers["Content-Length"] == str(len(data))
            assert client.get(f"{far.address}/none").status_code == 404
            listing = client.request("PROPFIND", f"{far.address}/", headers={"Depth": "1"})
            assert listing.status_code == 207
            assert listing.text.count("<D:href>") == 5
        assert far.seen.verbs() == {"GET": 2, "HEAD": 1, "PROPFIND": 1}
        assert far.seen.log[0] == ("GET", "/2")
        assert far.seen.received_bytes > 1_000_000


def test_a_server_that_goes_away_ends_the_connection(tmp_path: Path) -> None:
    with far_server("http://127.0.0.1:9", FAR) as far, httpx.Client(trust_env=False) as client:
        for _ in range(2):
            try:
                client.get(far.address)
            except httpx.TransportError:
                continue
            raise AssertionError("somebody answered")
