"""Errors of libraries and of the machine that a user can mend, each as one true sentence; the rest stays as it is.

Only kinds that what a user gave or the machine lacks can cause. An error of ours keeps its traceback.
"""

from __future__ import annotations

import errno
import locale
import re
from collections.abc import Iterator

_REFUSED_PLACES = {
    errno.EACCES: "no permission for",
    errno.EPERM: "no permission for",
    errno.EROFS: "a read-only file system holds",
    errno.ENOTDIR: "a file stands where a folder is needed:",
    errno.EEXIST: "a file stands where a folder is needed:",
    errno.EISDIR: "a folder stands where a file is needed:",
    errno.ENAMETOOLONG: "the file system takes no name as long as",
    errno.ELOOP: "symbolic links lead in a circle at",
    errno.ESTALE: "the network file system lost",
    errno.EIO: "the disk or network file system failed at",
}
_LIMITS = {
    errno.EMFILE: "this process may open no more files; raise the limit with ulimit -n",
    errno.ENFILE: "this machine may open no more files; end other programs or raise fs.file-max",
    errno.ENOMEM: "this machine has no memory left; lower data.workers, data.index_workers or batch.per_step",
    errno.EADDRINUSE: "the port of --coordinator is in use; name another",
    errno.EADDRNOTAVAIL: "the host of --coordinator is not this machine's",
}
_PACKAGES = {
    "gcsfs": "gs:// paths need the package gcsfs: pip install gcsfs",
    "s3fs": "s3:// paths need the package s3fs: pip install s3fs",
    "jax": "jax is not installed: pip install jax, or jax[cuda12], jax[cuda13] or jax[tpu]",
    "matplotlib": "curves are drawn by the package matplotlib: pip install matplotlib",
    "wandb": "train.wandb needs the package wandb: pip install wandb",
}
_GOOGLE = {"RefreshError", "DefaultCredentialsError", "TransportError", "MalformedError"}
_DENIED = re.compile(
    r"\b(?:401|403)\b|invalid[_ ]grant|token[^.]{0,40}(?:expired|revoked|used too early)|Unauthenticated", re.I
)


def sentence(error: BaseException) -> str | None:
    """What to say of an error, or None where it may be a fault of the program. Its causes are looked at too."""
    for each in _chain(error):
        if said := _package(each) or _place(each) or _login(each) or _text(each):
            return said
        if isinstance(each, MemoryError):
            return _LIMITS[errno.ENOMEM]
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from; not what was handled meanwhile, which need not be its reason."""
    while error is not None:
        yield error
        error = error.__cause__


def _package(error: BaseException) -> str | None:
    if not isinstance(error, ImportError):
        return None
    name = (error.name or "").partition(".")[0]
    told = re.search(r"\b(gcsfs|s3fs)\b", str(error))
    return _PACKAGES.get(name) or (_PACKAGES[told[1]] if told else None)


def _place(error: BaseException) -> str | None:
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.errno in _LIMITS:
        return _LIMITS[error.errno]
    if error.errno in _REFUSED_PLACES and error.filename:
        name = str(error.filename)
        return f"{_REFUSED_PLACES[error.errno]} {name if len(name) < 200 else name[:150] + ' ..'}"
    return None


def _login(error: BaseException) -> str | None:
    """By module and name: their packages are seldom installed and slow to import."""
    module, name = type(error).__module__.partition(".")[0], type(error).__name__
    text = " ".join(str(error).split())[:200]
    if module == "google" and name in _GOOGLE:
        return f"Google Cloud refused the login ({text}); sign in again: gcloud auth application-default login"
    if module == "gcsfs" and (_DENIED.search(text) or getattr(error, "code", None) in (401, 403)):
        return f"the bucket refused the request ({text}); sign in again: gcloud auth application-default login"
    if module == "huggingface_hub":
        return f"the hub refused the request ({text}); check the name and HF_TOKEN, or sign in: hf auth login"
    if module == "wandb" and ("Auth" in name or "Usage" in name or "Comm" in name):
        return (
            f"wandb refused the request ({text}); check WANDB_API_KEY, sign in: wandb login, or leave train.wandb empty"
        )
    return None


def _text(error: BaseException) -> str | None:
    """Text that the locale cannot write or read. UTF-8's own errors are about a file or a text, which others name."""
    encoding = locale.getpreferredencoding(False)
    if isinstance(error, UnicodeError) and encoding.lower().replace("-", "") not in ("utf8",):
        return f"the locale's encoding is {encoding}, and files here are UTF-8; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
    return None
