"""Errors meant for the person at the keyboard."""


class LampError(ValueError):
    """A sentence for the user: what is wrong, with which value, and what to do about it."""


class MotionFileError(LampError):
    """A motion file cannot be read, is damaged, or is not a motion file."""


class IncompatibleModelError(LampError):
    """A motion and a base model do not belong together."""


class ClipError(LampError):
    """A training clip cannot be found, read or used."""
