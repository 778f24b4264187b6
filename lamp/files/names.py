"""Names of files that people choose: one rule for every system, so that what is made on one can be
copied to another, and a name leads nowhere but below its folder."""

from __future__ import annotations

import re

# To Windows these are devices, with any ending, in every folder.
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{device}{number}" for device in ("com", "lpt") for number in "0123456789¹²³"
}
_LONGEST = 180  # bytes of a part: most disks end at 255, and endings come behind it


def is_plain_name(name: str) -> bool:
    """Whether `name`, of parts with `/` between them, is a file's on any system: below the folder
    that it is put into, no device, nothing that a disk would change or refuse."""
    return all(_is_plain_part(part) for part in name.split("/"))


def number_of(file: str, name: str) -> int:
    """The number in `NAME_00012`, also with an ending or a mark (`-stopped`) behind it; 0 for any
    other file, such as those of a run that is called `NAME_2`."""
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
