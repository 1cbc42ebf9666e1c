"""Weights by name: a file or folder here, a published checkpoint, a repository of the hub. Fetched once, then kept.

Published files are kept in `vlbeit/` of the Hugging Face cache folder (HF_HOME), repositories where huggingface_hub
keeps them. A file's SHA-256 is compared with the published one, or, where none is, with the one of the first fetch.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from vlbeit import files, hub, registry
from vlbeit.errors import DataError, UsageError
from vlbeit.models.known import CLOSED_HOST, KNOWN, Published
from vlbeit.models.weight_files import PATTERNS, weight_files

LEAST = 1_000_000  # bytes: anything smaller is no checkpoint but somebody's message
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
_FILES = {".pt", ".pth", ".bin", ".pkl", ".ckpt", ".safetensors", ".zip", ".onnx"}
_BESIDE = ("*.json", "*.txt", "*.model")
Report = Callable[[str], object]


def locate(name_or_path: str, report: Report = print) -> Path:
    """Where the weights of a name lie, fetched if need be.

    An existing file or folder wins, then a published name (`vlbeit models`), then `org/repo[@revision]` of the hub.

    Args:
        report: takes the lines that tell what is fetched.

    Raises:
        UsageError: nothing of that name exists; names the nearest ones.
        DataError: it exists and could not be fetched, or is not what was published.
    """
    path = Path(os.path.expanduser(name_or_path))
    if name_or_path and path.exists():
        return path
    if name_or_path in KNOWN:
        return fetch(KNOWN[name_or_path], report)
    close = difflib.get_close_matches(name_or_path, KNOWN, n=5, cutoff=0.4)
    guess = registry.nearest(name_or_path, close) if close else "none is near"
    advice = f"{guess}; `vlbeit models` lists them all"
    if not _REPOSITORY.fullmatch(name_or_path) or path.suffix in _FILES:
        raise UsageError(f"{name_or_path}: no such file or folder, and no published name: {advice}")
    from vlbeit.models.download import Failed

    try:
        return _repository(name_or_path)
    except Failed as failure:
        raise UsageError(f"{name_or_path}: no such file or folder; as a repository: {failure}; {advice}") from failure


def fetch(published: Published, report: Report = print) -> Path:
    """The published file, or the folder of a repository with the same weights; fetched unless it is here.

    Two processes at once fetch it once: the second one waits. Addresses are tried in their order, cached repositories
    first.

    Raises:
        DataError: no address gave it, HF_HUB_OFFLINE forbids asking, the disk is full, or a file that was fetched
            before has changed. Says what to do by hand.
    """
    from vlbeit.models.download import Failed

    file = place(published)
    if file is not None and file.exists():
        return _kept(file, published)
    refusals: list[str] = []
    for address in sorted(published.addresses, key=lambda each: _is_file(each) or _snapshot(each) is None):
        if refusals:
            report(f"{published.name}: {refusals[-1]}; trying {address}")
        try:
            if not _is_file(address):
                return _repository(address)
            return _file(published, address, report)
        except Failed as failure:
            refusals.append(str(failure))
    reasons = "; ".join(refusals) or "nobody publishes an address of it"
    raise DataError(f"{published.name} could not be fetched: {reasons}. {_by_hand(published)}")


def place(published: Published) -> Path | None:
    """The file that a published file is kept in, there or not; None for a repository of the hub."""
    from huggingface_hub import constants

    for address in filter(_is_file, published.addresses):
        suffix = PurePosixPath(urlsplit(address).path).suffix
        return Path(constants.HF_HOME) / "vlbeit" / f"{published.name}{suffix}"
    return None


def here(published: Published) -> Path | None:
    """The file or the cached repository, if one is here. Nothing is read, nothing is asked."""
    file = place(published)
    if file is not None and file.exists():
        return file
    found = (_snapshot(address) for address in published.addresses if not _is_file(address))
    return next(filter(None, found), None)


def describe(published: Published, found: Path | None) -> tuple[str, ...]:
    """Cells of a table: name, what it is, size, licence, from where, whether it is here (`found`, as `here` says)."""
    hosts = [urlsplit(each).hostname or "" if _is_file(each) else "huggingface.co" for each in published.addresses]
    size = found.stat().st_size if found is not None and found.is_file() else published.size
    megabytes = "" if size is None else f"{size / 1e6:,.0f} MB"
    where = ", ".join(host for host in dict.fromkeys(hosts) if host != CLOSED_HOST) or f"by hand: {published.page}"
    return published.name, published.what, megabytes, published.licence, where, "yes" if found else ""


def _snapshot(address: str) -> Path | None:
    """The folder of a repository in huggingface_hub's cache, if weights are in it."""
    from huggingface_hub import constants

    repository, _, revision = address.partition("@")
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    branch = folder / "refs" / (revision or "main")
    snapshot = folder / "snapshots" / (branch.read_text().strip() if branch.is_file() else revision or "main")
    return snapshot if weight_files(snapshot) else None


def _file(published: Published, address: str, report: Report) -> Path:
    from vlbeit.models.download import Failed, discard, download, megabytes, progress

    file = place(published)
    assert file is not None, published.name
    if _offline():
        raise Failed("HF_HUB_OFFLINE is set")
    file.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file, report):
        if file.exists():  # the process that was waited for has brought it
            return _kept(file, published)
        partial = file.with_name(f"{file.name}.partial")
        report(f"fetching {published.name} from {address}")
        with progress(published.name, report) as show:
            download(address, partial, size=published.size, show=show)
        try:
            digest = _check(partial, published)
        except Failed:
            discard(partial)
            raise
        _record(file, digest)
        os.replace(partial, file)
        discard(partial)
    report(f"{file} ({megabytes(file.stat().st_size)}, SHA-256 {digest})")
    return file


def _kept(file: Path, published: Published) -> Path:
    """A file that is here already; one that somebody put there by hand is checked like one that comes."""
    from vlbeit.models.download import Failed

    try:
        digest = _check(file, published)
    except Failed as failure:
        raise DataError(f"{file}: {failure}; remove it, and it is fetched anew") from failure
    record = _beside(file)
    if not record.exists():
        _record(file, digest)
    elif record.read_text().split()[:1] != [digest]:
        raise DataError(
            f"{file} has changed since it was fetched ({record.name} has another SHA-256): remove both, and it is "
            "fetched anew"
        )
    return file


def _check(file: Path, published: Published) -> str:
    """SHA-256 of a file that can be the published one; Failed where it cannot."""
    from vlbeit.models.download import Failed

    size, time = file.stat().st_size, file.stat().st_mtime_ns
    with open(file, "rb") as opened:
        if is_page(opened.read(100)):
            raise Failed("it is a web page or an error message, not weights")
    if published.size is not None and size != published.size:
        raise Failed(f"it has {size} bytes, the published file has {published.size}")
    if published.size is None and size < LEAST:
        raise Failed(f"it has {size} bytes, too few for a checkpoint")
    digest = _digest(file, size, time)
    if published.sha256 is not None and not digest.startswith(published.sha256):
        raise Failed(f"its SHA-256 is {digest}, that of the published file {published.sha256}")
    return digest


@cache
def _digest(file: Path, size: int, time: int) -> str:
    """SHA-256 of a file of this size and time: a command asks for its weights several times."""
    return files.sha256(file)


def is_page(head: bytes) -> bool:
    """Whether a file that begins so is a web page or an error message: no format of weights begins like one."""
    return bool(re.match(rb"(\xef\xbb\xbf)?\s*(<!|<\?|<html|<error|\{\s*\")", head, re.IGNORECASE))


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _record(file: Path, digest: str) -> None:
    files.write_text(_beside(file), f"{digest}  {file.name}\n")


@contextmanager
def _alone(file: Path, report: Report) -> Iterator[None]:
    """One process at a time; the others wait and say so."""
    from filelock import FileLock, Timeout

    lock = FileLock(file.with_name(f"{file.name}.lock"))
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        report(f"another process is fetching {file.name}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _repository(address: str) -> Path:
    """Folder of a hub repository: weights (safetensors where it has them) and the small files beside them."""
    from huggingface_hub import errors, snapshot_download

    from vlbeit.http import httpx
    from vlbeit.models.download import Failed

    repository, _, revision = address.partition("@")
    try:
        for weights in PATTERNS:
            with hub.asked():
                allowed = [*_BESIDE, *weights]
                folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=allowed))
            if weight_files(folder):
                return folder
    except errors.GatedRepoError as error:
        permission = f"its owner asks for an agreement at https://huggingface.co/{repository}, then `hf auth login`"
        raise Failed(f"{repository}: {permission}") from error
    except errors.RepositoryNotFoundError as error:
        raise Failed(f"the hub has no repository {repository} (a private one needs `hf auth login`)") from error
    except errors.RevisionNotFoundError as error:
        raise Failed(f"{repository} has no revision {revision}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        reason = "HF_HUB_OFFLINE is set" if _offline() else "the hub does not answer"
        raise Failed(f"{reason}, and {repository} is not in its cache") from error
    except (httpx.HTTPError, errors.HFValidationError) as error:
        raise Failed(f"{repository}: {' '.join(str(error).split())[:200]}") from error
    raise Failed(f"{repository} has no weights: none of {', '.join(sum(PATTERNS, ()))}")


def _by_hand(published: Published) -> str:
    from huggingface_hub import constants

    file = place(published)
    if file is None:
        name = published.addresses[0]
        folder = f"models--{name.replace('/', '--')}"
        return f"By hand: `hf download {name}` where there is a network; copy {folder} to {constants.HF_HUB_CACHE}"
    address = next(filter(_is_file, published.addresses))
    return f"By hand: download {address} (its page is {published.page}) and put it at {file}"


def _is_file(address: str) -> bool:
    return address.startswith(("https://", "http://"))


def _offline() -> bool:
    """As huggingface_hub reads it; its own flag is also set where only the hub does not answer."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in {"1", "ON", "YES", "TRUE"}
