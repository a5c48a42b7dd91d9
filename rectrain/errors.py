"""One tree of user mistakes: each says what, what was got, the rule, and the fix, on one line."""

from __future__ import annotations

import re

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EncoderError",
    "NoIndex",
    "PackageError",
    "RectrainError",
    "ResourceError",
    "StorageError",
    "without_credentials",
]

_MAX_GOT = 200
# What stands before the @ of a URI. A password may hold slashes (AWS secrets do) and @; a name may
# not, or the @ of a path such as s3://bucket/a@b would be taken for the end of a password.
_CREDENTIALS = re.compile(r"(?<=://)(?:[^/@\s':,]*:[^@\s']*@|[^/@\s']*@)+")


def without_credentials(text: str) -> str:
    """The text without the user names and passwords that URIs in it hold.

    Rather too much is left out than too little: of http://host:80/a@b what precedes the @, too.
    """
    return _CREDENTIALS.sub("", text)


class RectrainError(Exception):
    """A mistake that the user can mend; jobs print it as one line and exit with status 2.

    Args:
        what: the thing that is wrong (a key, a column, a file).
        got: the offending value; shortened to 200 characters when shown.
        rule: what must hold instead.
        fix: what to do next, in the imperative.
    """

    def __init__(self, *, what: str, got: object, rule: str, fix: str) -> None:
        super().__init__(what, got, rule, fix)
        self.what = what
        self.got = got
        self.rule = rule
        self.fix = fix

    def __str__(self) -> str:
        got = without_credentials(str(self.got))
        if len(got) > _MAX_GOT:
            got = got[: _MAX_GOT - 1] + "…"
        line = f"{self.what}: got {got}; {self.rule}; fix: {self.fix}"
        return " ".join(without_credentials(line).split())

    def __reduce__(self) -> tuple[object, ...]:
        # Ray sends errors between processes by pickle; keyword-only arguments need this.
        return _rebuild, (type(self), self.what, str(self.got), self.rule, self.fix)


def _rebuild(cls: type[RectrainError], what: str, got: str, rule: str, fix: str) -> RectrainError:
    return cls(what=what, got=got, rule=rule, fix=fix)


class ConfigError(RectrainError):
    """A configuration file or a command-line override is wrong."""


class DataError(RectrainError):
    """Input data or a prepared directory breaks its rules."""


class EncoderError(RectrainError):
    """An encoder or tokenizer directory can't be used, or doesn't match the data."""


class CheckpointError(RectrainError):
    """A checkpoint is incomplete, altered, or made by something else."""


class PackageError(RectrainError):
    """A published folder of a model is foreign, incomplete, altered, or of another model."""


class NoIndex(PackageError):
    """A package without the item index that is asked for."""


class ResourceError(RectrainError):
    """The machine or cluster lacks what the run asks for (CPUs, GPUs, memory)."""


class StorageError(RectrainError):
    """A path can't be read or written, or the disk is full."""
