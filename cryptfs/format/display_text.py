"""The few texts of the format that people get to see: names of devices and labels of slots.

A label is read before the header is verified, and a terminal obeys control characters.
"""

from __future__ import annotations

import re
from typing import Final

from cryptfs.errors import FormatError

MAX_TEXT_BYTES: Final = 255

# C0, DEL and C1 controls; line and paragraph separators; what turns the direction of writing
# (and so can make a text look like another); halves of surrogate pairs.
_REFUSED: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def check_display_text(text: str, what: str) -> None:
    """Raises `FormatError` if ``text`` is longer than 255 bytes or not safe to print."""
    found = _REFUSED.search(text)
    if found is not None:
        raise FormatError(f"{what} holds the character U+{ord(found[0]):04X}")
    if len(text) > MAX_TEXT_BYTES or len(text.encode("utf-8")) > MAX_TEXT_BYTES:
        raise FormatError(f"{what} is longer than {MAX_TEXT_BYTES} bytes")


MAX_DEVICE_NAME: Final = 60


def check_device_name(name: str) -> None:
    """Raises `FormatError` for a name that no device is to be given here.

    Stricter than the format, which reads what others wrote: the name goes into the names of
    conflict copies, and into tables beside other names, where what does not show would mislead.
    """
    check_display_text(name, "the device name")
    if not name.strip():
        raise FormatError("the device name is empty; choose one such as 'laptop'")
    if name != name.strip():
        raise FormatError("the device name begins or ends with a space")
    if len(name) > MAX_DEVICE_NAME:
        raise FormatError(f"the device name is longer than {MAX_DEVICE_NAME} characters")
    if "/" in name:
        raise FormatError("the device name holds a /, which no file name can")
    hidden = next((character for character in name if not character.isprintable()), None)
    if hidden is not None:
        raise FormatError(f"the device name holds the character U+{ord(hidden):04X}")
    if name.isascii() and name.isdigit():
        raise FormatError("a device name of digits would be taken for a device's number")
