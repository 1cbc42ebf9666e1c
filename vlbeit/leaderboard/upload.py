"""Bringing the bytes there: in one request, or in chunks to addresses that the server hands out.

Both stream from disk. A chunk that is cut off is put again, the others stay; what was put is remembered in our config
folder (addresses of chunks are good for whoever has them), so that the same command goes on after a kill.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit.errors import DataError
from vlbeit.http import WAITS
from vlbeit.leaderboard import account, clock, evalai
from vlbeit.leaderboard.client import Client
from vlbeit.leaderboard.refusals import Refused, Unavailable, Unsure

CHUNK = 20 << 20  # bytes, as the official client
_BLOCK = 1 << 18  # bytes read at a time
Show = Callable[[int, int], None]  # (bytes that are there, bytes in all)


class Target(NamedTuple):
    """A file and the phase that it goes to."""

    file: Path
    sha256: str
    size: int  # bytes
    challenge: int
    phase: int
    fields: Mapping[str, str]  # method_name and what else the server stores with it


def send_whole(client: Client, target: Target) -> int:
    """One request with the file in it; returns the submission's number. Raises Unsure where the line broke."""
    path = f"{evalai.phase_path(target.challenge, target.phase)}submission/"
    fields = {"status": "submitting", "submission_metadata": "[]", **target.fields}
    return _number(client.post(path, fields, target.file), "id", client)


class ChunkedUpload:
    """A file on its way in chunks. What is done is kept on disk until the server has the whole."""

    def __init__(self, client: Client, target: Target) -> None:
        """Takes up an earlier upload of the same bytes to the same phase, if it was not finished."""
        self.client = client
        self.target = target
        self.chunk = CHUNK
        key = json.dumps([client.host, target.challenge, target.phase, target.sha256, self.chunk])
        self.note = account.config_folder() / "uploads" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        self.state: dict[str, Any] = self._read()
        self.is_resumed = bool(self.state)

    @property
    def number(self) -> int | None:
        """The submission's number, None before the server has given one."""
        return self.state.get("number")

    def begin(self) -> int:
        """Ask for the addresses, unless they are here; returns the submission's number."""
        if self.number is None:
            count = max(1, -(-self.target.size // self.chunk))  # differs from the official client: no empty last chunk
            fields = {"status": "submitting", "file_name": self.target.file.name, "num_file_chunks": str(count)}
            path = f"/api/jobs/phases/{self.target.phase}/get_submission_file_presigned_url/"
            reply = self.client.post(path, {**fields, **self.target.fields})
            number = _number(reply, "submission_pk", self.client)
            try:
                urls = {str(int(each["partNumber"])): str(each["url"]) for each in reply["presigned_urls"]}
                upload = str(reply["upload_id"])
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{self.client.host}: no addresses for the chunks in its reply ({error!r})") from error
            if sorted(urls, key=int) != [str(part) for part in range(1, count + 1)]:
                raise DataError(f"{self.client.host}: {len(urls)} addresses for {count} chunks; send the file again")
            self._keep(number=number, upload_id=upload, urls=urls, etags={})
        assert self.number is not None
        return self.number

    def put_chunks(self, show: Show) -> None:
        """Put every chunk that is not there yet. Raises Unavailable or Refused; what is there is remembered."""
        for part, url in sorted(self.state["urls"].items(), key=lambda each: int(each[0])):
            start = (int(part) - 1) * self.chunk
            size = min(self.chunk, self.target.size - start)
            if part not in self.state["etags"]:
                tag = self.client.put(url, partial(self._blocks, start, size, show), size)
                self._keep(etags={**self.state["etags"], part: tag})
            show(start + size, self.target.size)

    def finish(self) -> None:
        """Have the chunks put together and the evaluation begin; both go on where an earlier try broke off."""
        if not self.state.get("joined"):
            parts = [{"ETag": tag, "PartNumber": int(part)} for part, tag in self.state["etags"].items()]
            parts.sort(key=lambda each: each["PartNumber"])
            fields = {"parts": json.dumps(parts), "upload_id": self.state["upload_id"]}
            asked_before = bool(self.state.get("joining"))
            self._keep(joining=True)
            try:
                self._insist("finish_submission_file_upload", fields, asked_before)
            except Refused:
                self._keep(joining=False)
                raise
            self._keep(joined=True)
        self._insist("send_submission_message", {})
        self.forget()

    def forget(self) -> None:
        """Drop what is remembered: the next upload begins anew."""
        self.note.unlink(missing_ok=True)
        self.state, self.is_resumed = {}, False

    def _insist(self, call: str, fields: Mapping[str, str], asked_before: bool = False) -> None:
        """Post until it was surely carried out. A refusal of what was asked for before means that it had been."""
        path = f"/api/jobs/phases/{self.target.phase}/{call}/{self.number}/"
        unsure: Unsure | None = None
        for wait in (*WAITS, None):
            try:
                self.client.post(path, fields)
                return
            except Unsure as error:
                unsure = error
            except Refused:
                if unsure is None and not asked_before:
                    raise
                return
            if self._has_begun():
                return
            if wait is not None:
                clock.pause(wait)
        raise Unavailable(f"{unsure}; all of the file is there: the same command goes on") from unsure

    def _has_begun(self) -> bool:
        """Whether the server has gone beyond waiting for the file."""
        assert self.number is not None
        return evalai.read_submission(self.client, self.number)["status"] != "submitting"

    def _blocks(self, start: int, size: int, show: Show) -> Iterator[bytes]:
        with open(self.target.file, "rb") as file:
            file.seek(start)
            done = 0
            while done < size:
                block = file.read(min(_BLOCK, size - done))
                if not block:
                    raise DataError(f"{self.target.file} became shorter while it was sent: send it again")
                yield block
                done += len(block)
                show(start + done, self.target.size)

    def _keep(self, **changes: Any) -> None:
        self.state = {**self.state, **changes}
        account.write_private(self.note, json.dumps(self.state))

    def _read(self) -> dict[str, Any]:
        try:
            state = json.loads(self.note.read_text(encoding="utf-8"))
            return state if {"number", "upload_id", "urls", "etags"} <= state.keys() else {}
        except (OSError, ValueError, AttributeError):  # none, or one that somebody damaged: begin anew
            return {}


def _number(reply: Any, key: str, client: Client) -> int:
    number = reply.get(key) if isinstance(reply, dict) else None
    if type(number) is not int:
        raise DataError(f"{client.host}: no number of the submission in its reply; is it an EvalAI server?")
    return number
