"""Secrets, from files or the environment of this step service: nobody else has their values.

What a service may read is what it was given. Each tenant has a directory of its own in `ANABRANCH_SECRETS_DIR`; what
lies beside these, and what the environment has, is the default tenant's. They are read anew for each attempt, so that
one that was changed counts from the next on.
"""

import asyncio
import os
import re
import stat
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import orjson

from anabranch.services.steps.settings import StepServiceSettings
from anabranch.shared.contracts.errors import ErrorType, TerminalError
from anabranch.shared.contracts.limits import MAX_SECRET_BYTES, MAX_STEP_INPUT_BYTES
from anabranch.shared.contracts.secrets import SecretText, is_secret_name
from anabranch.shared.runtime.settings import SECRET_PREFIX

_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")  # others would be another directory than theirs


class SecretError(TerminalError):
    """A secret that an attempt cannot have; names it, never its value."""


class NoSecrets:
    """What a worker has that was given none."""

    def __init__(self, step_type: str) -> None:
        self._type = step_type

    async def values(self, tenant: str, texts: Sequence[SecretText]) -> dict[str, str]:
        """Raise `SecretError`."""
        raise _missing(texts[0].names[0], self._type, tenant)


class ServiceSecrets:
    """The secrets that a service of this step type was given."""

    def __init__(
        self, step_type: str, settings: StepServiceSettings, environment: Mapping[str, str] = os.environ
    ) -> None:
        self._type = step_type
        self._directory = settings.secrets_dir
        self._default_tenant = settings.default_tenant
        self._allowed = [part.strip() for part in settings.secrets_allow.split(",") if part.strip()]
        self._environment = environment

    async def values(self, tenant: str, texts: Sequence[SecretText]) -> dict[str, str]:
        """Return the secrets that the texts name, by name. Raises `SecretError`."""
        names = dict.fromkeys(name for text in texts for name in text.names)
        return await asyncio.to_thread(self._read_all, tenant, tuple(names))  # a file system may be slow

    def _read_all(self, tenant: str, names: Sequence[str]) -> dict[str, str]:
        return {name: self._value(tenant, name) for name in names}

    def _value(self, tenant: str, name: str) -> str:
        raw = self._read(tenant, name) if self._may_read(name) else None
        if raw is None:
            raise _missing(name, self._type, tenant)
        if len(raw) > MAX_SECRET_BYTES:
            raise _unreadable(name, f"has more than {MAX_SECRET_BYTES} bytes")
        try:
            value = raw.decode().rstrip("\r\n")  # of the editor or `echo` that wrote the file
        except UnicodeDecodeError:  # which has the bytes in it
            raise _unreadable(name, "is no UTF-8 text") from None
        if not value or "\0" in value:
            raise _unreadable(name, "has a NUL in it" if value else "is empty")
        return value

    def _may_read(self, name: str) -> bool:
        return is_secret_name(name) and any(
            fnmatchcase(f"{self._type}:{name}", pattern if ":" in pattern else f"*:{pattern}")
            for pattern in self._allowed
        )

    def _read(self, tenant: str, name: str) -> bytes | None:
        """Return the bytes of a secret, or None when there is none."""
        found = None
        if self._directory is not None and _TENANT.fullmatch(tenant):
            found = _content(self._directory / tenant / name, name)
        if found is None and tenant == self._default_tenant:
            if self._directory is not None:
                found = _content(self._directory / name, name)
            if found is None and (value := self._environment.get(SECRET_PREFIX + name)) is not None:
                found = value.encode(errors="surrogateescape")
        return found


def _content(path: Path, name: str) -> bytes | None:
    """Return what is in a file, as much as a secret may have and a byte more; None where there is no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # of a pipe nobody waits for the writer
        try:
            is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
            return os.read(descriptor, MAX_SECRET_BYTES + 1) if is_file else None
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(name, f"cannot be read: {error.strerror}") from None  # the error names a path of the machine


def _missing(name: str, step_type: str, tenant: str) -> SecretError:
    return SecretError(
        f"there is no secret {name!r} for steps of type {step_type} of the tenant {tenant!r}; its step service reads "
        "files below ANABRANCH_SECRETS_DIR, and ANABRANCH_SECRET_<NAME> for the default tenant",
        error_type="SecretMissing",
    )


def _unreadable(name: str, why: str) -> SecretError:
    return SecretError(f"the secret {name!r} {why}", error_type="SecretUnreadable")


def with_secrets(given: Any, texts: Sequence[SecretText], values: Mapping[str, str]) -> Any:
    """Return a copy of an input with the texts in their places. Raises `SecretError` for more than a step may hold."""
    size = sum(
        len(values[part]) if number % 2 else len(part) for text in texts for number, part in enumerate(text.parts)
    )
    if size > MAX_STEP_INPUT_BYTES:
        raise SecretError(
            f"the input has {size} characters of texts with secrets, a step may have {MAX_STEP_INPUT_BYTES} bytes",
            error_type=ErrorType.PAYLOAD_TOO_LARGE,
        )
    whole = {"": orjson.loads(orjson.dumps(given))}  # the command keeps its own
    for text in texts:
        container, key = _place_of(whole, text.at)
        container[key] = "".join(values[part] if number % 2 else part for number, part in enumerate(text.parts))
    return whole[""]


def _place_of(value: Any, pointer: str) -> tuple[Any, str | int]:
    """Return the container and the key of a JSON Pointer (RFC 6901) to a value under the key \"\"."""
    key: str | int = ""
    for part in pointer.split("/")[1:]:
        value = value[key]
        key = int(part) if isinstance(value, list) else part.replace("~1", "/").replace("~0", "~")
    return value, key
