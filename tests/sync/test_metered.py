"""Whether the network is metered, as NetworkManager's tool says; its output is as it prints it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.sync.metered import is_metered

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
WIFI = "wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n"
CABLE = "eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
LOCAL = "eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A tool that knows two devices, and one that it does not."""
    path = tmp_path / "nmcli"
    path.write_text(
        "#!/bin/sh\n"
        '[ "$LC_ALL $1 $2 $3 $4" = "C -g GENERAL.METERED device show" ] || exit 2\n'
        'case "$5" in\n'
        'wlan0) echo "yes (guessed)";;\n'
        'ppp0) echo "yes";;\n'
        'eth0) echo "no (guessed)";;\n'
        'tun0) echo "unknown";;\n'
        "*) echo \"Error: Device '$5' not found.\" >&2; exit 10;;\n"
        "esac\n"
    )
    path.chmod(0o700)
    return path


@pytest.mark.parametrize(
    ("routes", "metered"),
    [
        (WIFI, True),
        (LOCAL + WIFI, True),
        (WIFI + CABLE, False),
        (CABLE + WIFI, False),
        (WIFI.replace("wlan0", "ppp0"), True),
        (WIFI.replace("wlan0", "tun0"), False),
        (WIFI.replace("wlan0", "br0"), False),
        (LOCAL, False),
        ("", False),
        ("garbage\n", False),
    ],
)
async def test_the_device_of_the_best_route_decides(
    tmp_path: Path, program: Path, routes: str, metered: bool
) -> None:
    (tmp_path / "route").write_text(HEAD + routes)
    assert await is_metered(tmp_path / "route", str(program)) is metered


async def test_without_the_tool_or_routes_the_network_is_free(
    tmp_path: Path, program: Path
) -> None:
    assert await is_metered(tmp_path / "route", str(program)) is False
    (tmp_path / "route").write_text(HEAD + WIFI)
    assert await is_metered(tmp_path / "route", str(tmp_path / "none")) is False
