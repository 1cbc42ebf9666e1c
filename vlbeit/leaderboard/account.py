"""Whose account on which server: the host and the token, which is never printed, logged or put into a run folder.

The token comes from EVALAI_TOKEN, from `evalai.json` of our config folder, or from the official client's
`~/.evalai/token.json`. There is no option for it: command lines can be read by everybody on the machine.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from vlbeit.errors import DataError, UsageError

HOST = "https://eval.ai"
VARIABLE = "EVALAI_TOKEN"
_LOCAL = ("localhost", "127.0.0.1", "::1")


def choose_host(option: str | None = None) -> str:
    """`--host`, else EVALAI_API_URL, else eval.ai; without a slash at its end.

    Raises UsageError for what is no address, holds a name and password, or would send the token in the clear.
    """
    source = "--host" if option else "EVALAI_API_URL"
    host = (option or os.environ.get("EVALAI_API_URL") or HOST).strip().rstrip("/")
    try:
        parts = urlsplit(host)
        named = parts.hostname and (parts.port is None or parts.port)
    except ValueError:
        parts, named = urlsplit(""), None
    if parts.scheme not in ("https", "http") or not named or parts.username or parts.query or parts.fragment:
        raise UsageError(f"{source} is not the address of a server: it must be like {HOST}")
    if parts.scheme == "http" and parts.hostname not in _LOCAL:
        raise UsageError(f"{source}={host}: without https everybody on the way could read your token; use https://")
    return host


def config_folder() -> Path:
    """VLBEIT_CONFIG, else $XDG_CONFIG_HOME/vlbeit, else ~/.config/vlbeit; there or not."""
    if own := os.environ.get("VLBEIT_CONFIG"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "vlbeit"


def token_file() -> Path:
    """Where `vlbeit submit token` keeps the token."""
    return config_folder() / "evalai.json"


def find_token() -> str | None:
    """The token, None where there is none.

    Raises UsageError for a file that others can read, with the command that closes it, and for what is no token.
    """
    if given := os.environ.get(VARIABLE):
        return check_token(given, VARIABLE)
    for file in (token_file(), Path.home() / ".evalai" / "token.json"):
        if file.exists():
            return _read(file)
    return None


def require_token(host: str) -> str:
    """`find_token`, or a UsageError that says how to get one."""
    if token := find_token():
        return token
    raise UsageError(
        f"no token: copy the one that your profile page on {host} shows, then `vlbeit submit token` asks for it and "
        f"stores it, or set {VARIABLE}"
    )


def check_token(text: str, source: str) -> str:
    """The token without outer spaces; UsageError, which does not show it, where it cannot be one."""
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"{source} holds no token: it must be one word of letters, digits and signs, without spaces")
    return token


def store_token(token: str) -> Path:
    """Keep the token in our config folder, readable by its owner alone."""
    return write_private(token_file(), json.dumps({"token": check_token(token, "the input")}))


def write_private(path: Path, text: str) -> Path:
    """Replace a file by one that its owner alone can read, at no moment open to others."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)  # 0600 from its first byte
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _read(file: Path) -> str:
    if os.name == "posix" and stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise UsageError(
            f"{file} can be read by others: `chmod 600 {shlex.quote(str(file))}`; if this machine has other users, "
            "get a new token too"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f'{file} cannot be read as {{"token": "..."}} ({type(error).__name__}): `vlbeit submit token` stores a new '
            "one, or remove the file"
        ) from None  # the text of the error may hold what stands in the file
    token = content.get("token") if isinstance(content, dict) else None
    return check_token(token if isinstance(token, str) else "", str(file))
