"""The model hub: whether it answers is found out once, before a library would ask for a minute, in many lines.

And the data sets that lie there.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

from vlbeit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "hub:"
"""What stands before the name of a data set of the hub, or of a folder in its layout."""


@contextmanager
def asked() -> Iterator[None]:
    """For the length of a `with` libraries may ask the hub, and log nothing: what goes wrong, they raise.

    Where the hub does not answer they look into their caches alone, as with HF_HUB_OFFLINE=1.
    """
    from huggingface_hub import constants

    if not _answers(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)


def load_tables(name: str) -> dict[str, Dataset]:
    """The splits of a data set, `OWNER/NAME` or `OWNER/NAME/CONFIG`, or a local folder in the layout of the hub.

    What `datasets` has in its cache is not fetched again. Imports no torch. Raises `DataError` with its reason.
    """
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    place, config = _place(name)
    try:
        if any((Path(place) / file).is_file() for file in ("dataset_dict.json", "dataset_info.json")):
            found = load_from_disk(place)
        elif Path(place).is_dir():
            found = load_dataset(place, config)
        else:
            with asked():
                found = load_dataset(place, config)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{PREFIX}{name} cannot be loaded by the datasets library: {reason}") from error
    if isinstance(found, Dataset):
        return {str(found.split or "train"): found}
    assert isinstance(found, DatasetDict)
    return {str(split): table for split, table in found.items()}


def _place(name: str) -> tuple[str, str | None]:
    """Folder, or owner and name on the hub, and the configuration, where one is named behind them."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder), None
    if folder.parent.is_dir() and (folder.is_absolute() or name.startswith(".")):
        return str(folder.parent), folder.name
    owner, _, rest = name.partition("/")
    own, _, config = rest.partition("/")
    return f"{owner}/{own}" if own else owner, config or None


@cache
def _answers(endpoint: str) -> bool:
    """Whether a connection can be made; True behind a proxy, where only a request would tell."""
    if getproxies():
        return True
    address = urlsplit(endpoint)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=5).close()
    except OSError:
        return False
    return True
