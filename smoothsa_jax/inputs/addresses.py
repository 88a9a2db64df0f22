"""Addresses of files and folders in object stores, such as gs://bucket/folder, read by fsspec.

The clients of object stores raise errors of their own, of many kinds. Here each becomes one line.
"""

import contextlib
import logging
import os
from collections.abc import Iterator

import fsspec

from smoothsa_jax.errors import UserError

# gcsfs logs what it raises as well, each time with dozens of lines.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is an address for fsspec, such as gs://bucket/folder."""
    return "://" in os.fspath(path)


def file_system(address: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of an address or path, and the path in it.

    Raises:
        UserError: there is no such protocol, its package is not installed, or it needs credentials.
    """
    try:
        system, path = fsspec.core.url_to_fs(address)
    except Exception as error:  # credentials may be looked for now
        is_unknown = isinstance(error, ValueError) and "protocol" in str(error).lower()
        if not is_unknown and not isinstance(error, ImportError):
            raise _as_user_error(address, "read", error) from error
        raise UserError(
            f"{address} cannot be read ({_line(error)}); install the package that fsspec names for "
            "it (of gs:// and s3://: pip install 'smoothsa_jax[cloud]'), or correct the address"
        ) from error
    return system, path.rstrip("/") or path


@contextlib.contextmanager
def explained(address: str, doing: str = "read", missing: bool = True) -> Iterator[None]:
    """Turn what a file system raises into one line.

    Args:
        address: what it is asked about, or a path of this machine.
        doing: what is done with it: "read", "written", "removed".
        missing: whether to do so with a `FileNotFoundError`, too; otherwise it passes.

    Raises:
        UserError: the body raised anything.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        if not missing:
            raise
        raise UserError(f"{address} does not exist; correct its address") from error
    except Exception as error:  # every protocol's package has errors of its own
        raise _as_user_error(address, doing, error) from error


def _as_user_error(address: str, doing: str, error: Exception) -> UserError:
    reason = _line(error)
    if not is_remote(address):
        if isinstance(error, OSError) and error.errno is not None:
            return UserError(f"{address} cannot be {doing} ({reason}); correct this")
        return UserError(
            f"{address} cannot be {doing} ({type(error).__name__}: {reason}); copy it again"
        )
    said = f"{type(error).__name__} {reason}".lower()
    codes = {getattr(error, name, None) for name in ("code", "status")} & {401, 403, "401", "403"}
    if isinstance(error, PermissionError) or codes or "credential" in said or "forbidden" in said:
        return UserError(
            f"{address} may not be {doing} with the credentials of this machine ({reason}); log in "
            "as its provider asks (gs://: gcloud auth application-default login, s3://: aws "
            "configure), or ask its owner for access"
        )
    return UserError(
        f"{address} cannot be {doing} ({type(error).__name__}: {reason}); check the address and "
        "the network, then run the same command: what is finished is kept"
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
