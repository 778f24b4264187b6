"""One rule for file names that users choose: valid on every system, never outside their folder."""

from __future__ import annotations

import re

# Device names on Windows, with any extension and in every folder.
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{device}{number}" for device in ("com", "lpt") for number in "0123456789¹²³"
}
# Bytes of a part. Most disks allow 255, and the longest name is that of a temporary file (39 more)
# of NAME_00001-step000123-stopped.safetensors (37 more).
_LONGEST = 160


def is_plain_name(name: str) -> bool:
    """Whether `name`, with `/` between its parts, is a valid relative file name on every system:
    no way out of its folder, no device, no character that a system changes or refuses."""
    return all(_is_plain_part(part) for part in name.split("/"))


def number_of(file: str, name: str) -> int:
    """The number in `NAME_00012`, also before an extension or a mark (`-stopped`); 0 for any other
    file, such as one of a run named `NAME_2`."""
    match = re.match(re.escape(name) + r"_([0-9]+)(?:[.-]|$)", file)
    return int(match[1]) if match else 0


def _is_plain_part(part: str) -> bool:
    try:
        size = len(part.encode())
    except UnicodeEncodeError:
        return False
    return (
        0 < size <= _LONGEST
        and not part.startswith(" ")
        and not part.endswith((".", " "))  # Windows drops them
        and not any(letter in '<>:"\\|?*' or ord(letter) < 32 for letter in part)
        and part.split(".")[0].rstrip().lower() not in _DEVICES
    )
