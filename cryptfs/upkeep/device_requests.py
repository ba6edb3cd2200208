"""What commands ask of a vault about its devices.

| request                                    | answer                                   |
|--------------------------------------------|------------------------------------------|
| ``{"do": "devices"}``                      | ``devices``: a list                      |
| ``{"do": "find device", "device": …}``     | the device of this name or number        |
| ``{"do": "forget device", "device": …}``   | the device that was let go               |
| ``{"do": "name device", "name": …}``       | this device, under its new name          |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from cryptfs.errors import CryptfsError, FormatError, UsageError
from cryptfs.format.display_text import check_device_name
from cryptfs.upkeep.devices import Devices, KnownDevice
from cryptfs.upkeep.identity import Identity

DEVICE_REQUESTS: Final = frozenset({"devices", "find device", "forget device", "name device"})


def answer_about_devices(
    devices: Devices, identity: Identity, request: Mapping[str, Any]
) -> dict[str, Any]:
    """Does what is asked, in the open transaction. Raises UsageError."""
    match request.get("do"):
        case "devices":
            return {"devices": [device_message(one) for one in devices.all()]}
        case "find device":
            return device_message(devices.find(str(request.get("device"))))
        case "forget device":
            _refuse_read_only(request)
            return device_message(devices.let_go(str(request.get("device"))))
        case "name device":
            _refuse_read_only(request)
            name = str(request.get("name"))
            try:
                check_device_name(name)
            except FormatError as error:
                raise UsageError(str(error)) from error
            identity.set_name(name)
            (me,) = [one for one in devices.all() if one.is_this]
            return device_message(replace(me, name=name))
        case other:
            raise CryptfsError(f"unknown request {other!r}")


def _refuse_read_only(request: Mapping[str, Any]) -> None:
    if request.get("read_only"):
        raise UsageError("the vault is mounted read-only; unmount it, or mount it for changes")


def device_message(one: KnownDevice) -> dict[str, Any]:
    """The device for the control socket, times in nanoseconds since 1970."""
    return {
        "number": one.number,
        "name": one.name,
        "this_device": one.is_this,
        "epoch": one.epoch,
        "time_ns": one.time_ns,
        "time_is_exact": one.is_exact,
        "holds_up_clean_up": one.holds_up,
        "unseen_days": one.unseen_days,
    }


def unseen_messages(devices: Devices) -> list[dict[str, Any]]:
    """The devices that a person is to be asked about, as docs/COMMANDS.md describes them."""
    return [
        {"number": one.number, "name": one.name, "unseen_days": one.unseen_days}
        for one in devices.unseen()
    ]
