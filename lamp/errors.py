"""Errors with messages for users."""

from __future__ import annotations

from .plain import plain


class LampError(ValueError):
    """A message for users: what is wrong, with which value, and what to do.

    Messages contain values from outside, so they are sanitised by `plain`.
    """

    def __init__(self, message: object) -> None:
        super().__init__(plain(message))


class MotionFileError(LampError):
    """A motion file cannot be read or is damaged, or the file is not a motion file."""


class IncompatibleModelError(LampError):
    """A motion does not fit the base model."""


class ClipError(LampError):
    """A training clip cannot be found, read or used."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine ran out of memory."""
    # By its name, because this module does not import PyTorch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower().replace("_", " ")
    told = "out of memory" in text or "alloc failed" in text or "out of device memory" in text
    return isinstance(error, RuntimeError) and (told or ("alloc" in text and "memory" in text))
