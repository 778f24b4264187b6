"""Errors meant for the person at the keyboard."""

from __future__ import annotations

from .plain import plain


class LampError(ValueError):
    """A sentence for the user: what is wrong, with which value, and what to do about it.

    The values come from outside: see `plain`.
    """

    def __init__(self, sentence: object) -> None:
        super().__init__(plain(sentence))


class MotionFileError(LampError):
    """A motion file cannot be read, is damaged, or is not a motion file."""


class IncompatibleModelError(LampError):
    """A motion and a base model do not belong together."""


class ClipError(LampError):
    """A training clip cannot be found, read or used."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine itself, had no memory left."""
    # Told by its name, since this module does not import PyTorch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "alloc" in str(error) and "memory" in str(error)
