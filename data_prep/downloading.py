"""The pictures of a list of URLs as WebDataset shards: limited in rate, tried again, gone on with after any end.

One thread decides what is asked for when and writes what came; the others wait for servers and make pictures small.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from vlbeit.data.records import ImageError
from vlbeit.errors import DataError, Interrupted, UsageError
from vlbeit.files import write_json
from vlbeit.http import WAITS, httpx

from .fetching import REDIRECTS, Bounds, Moved, Unfetched, client, fetch, may_pass, now_allowed, refusal
from .journal import compare
from .manner import Manner
from .pace import Pace
from .preparation import alone
from .progress import Report, counted
from .resizing import TOO_LARGE, resized
from .tally import Tally
from .tar_shards import NOT_FETCHED, NOT_READ, SUCCESS, Row, TarShard, reopen, stats_of
from .url_lists import UrlList, Wish

FACTS = "download.json"
_LONGEST_WAIT = 300.0  # seconds that a server may ask for
_SILENT = 100  # rows without any answer, one after the other, and it is asked whether there is a network at all
_GONE = 5  # rows that a host did not answer, one after the other: it is asked once for each further one
_REMEMBERED = 100_000  # hosts that did not answer
_POLL = 0.5  # seconds


def download(out: Path, lists: Mapping[str, UrlList], manner: Manner, report: Report | None) -> dict[str, Any]:
    """Bring the pictures of each split's list to `out/SPLIT/`; returns what download.json holds.

    Raises `UsageError` where `out` is something else's or was begun otherwise, `DataError` where no server answers or
    not one picture came, `Interrupted` for Ctrl-C. The same call goes on behind what is there.
    """
    say = report or (lambda line: None)
    manner.check()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        facts = _begin(out, lists, manner, say)
        answered = ""
        for split, urls in lists.items():
            folder = out / split
            folder.mkdir(exist_ok=True)
            _reopen(folder, facts["arguments"]["rows"][split], manner, say)
            tally = Tally(split, facts["arguments"]["rows"][split], say)
            try:
                answered = _Download(folder, urls, tally, manner, answered).run()
            except KeyboardInterrupt:
                raise Interrupted(
                    f"stopped; {out} knows {tally.done:,} of {tally.total:,} rows of {split}, and the same command "
                    f"goes on behind them"
                ) from None
            facts["splits"][split] = {"rows": tally.total, "reasons": dict(tally.reasons.most_common())}
            say(f"{split}: {tally.reasons[SUCCESS]:,} pictures of {tally.total:,} rows: {tally.shares(8)}")
            if not tally.reasons[SUCCESS] and not manner.give_up:
                local = any(reason.startswith("refused: private") for reason in tally.reasons)
                remedy = "; --allow-local asks private and loopback addresses too" if local else ""
                raise DataError(
                    f"{out}: not one picture of {split} came: {tally.shares(8)}{remedy}; --give-up goes on without them"
                )
        write_json(out / FACTS, facts, indent=1)
    if not any(SUCCESS in split["reasons"] for split in facts["splits"].values()):
        raise DataError(f"{out}: not one picture came; NNNNN.parquet beside each shard says why")
    say(f"wrote {out / FACTS}; NNNNN.parquet beside each shard names the rows that failed, and why")
    return facts


def _reopen(folder: Path, rows: int, manner: Manner, say: Report) -> None:
    """Take out of the shards that are whole the rows that the bounds allow by now, with --again those too that failed
    for a reason that may pass."""
    bounds = Bounds(int(manner.max_mb * 10**6), manner.allow_local)

    def again(reason: str) -> bool:
        return now_allowed(reason, bounds) or (manner.again and may_pass(reason))

    count = 0
    for number in range(-(-rows // manner.shard_rows)):
        stats = stats_of(folder, number)
        if stats is not None and any(map(again, stats["status_dict"])):
            count += reopen(folder, number, manner.shard_rows, again)
    if count or manner.again:
        say(f"{folder.name}: {count:,} rows that failed are asked for again")


def _begin(out: Path, lists: Mapping[str, UrlList], manner: Manner, say: Report) -> dict[str, Any]:
    """What download.json holds, written at the beginning with the arguments that a restart must have too."""
    path = out / FACTS
    arguments: dict[str, Any] = {
        "from": {split: urls.prints() for split, urls in lists.items()},
        **{name: getattr(manner, name) for name in ("image_size", "resize", "shard_rows")},
    }
    if path.is_file():
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            found = {name: value for name, value in facts["arguments"].items() if name != "rows"}
        except (ValueError, KeyError, AttributeError) as error:
            raise DataError(f"{path} is damaged ({error}); remove {out} and prepare it anew") from error
        compare(out, found, arguments)
        return facts
    if any(entry.name != ".lock" for entry in out.iterdir()):
        raise UsageError(f"{out} is there but was not begun by `vlbeit prepare`; choose another folder with --out")
    arguments["rows"] = {
        split: sum(1 for _ in counted(urls.rows(), "counting: {} rows", say)) for split, urls in lists.items()
    }
    if empty := [split for split, rows in arguments["rows"].items() if not rows]:
        raise DataError(f"the list of {empty[0]} has no rows: {', '.join(map(str, lists[empty[0]].paths))}")
    facts = {"version": 1, "arguments": arguments, "splits": {}}
    write_json(path, facts, indent=1)
    return facts


@dataclass
class _Task:
    """A row that is asked for."""

    row: int
    wish: Wish
    url: str  # that of the list, or where a redirect led
    tries: int = 0
    hops: int = 0

    @property
    def host(self) -> str:
        """Whom it is to be asked of; "" where the address is none."""
        try:
            return urlsplit(self.url).hostname or ""
        except ValueError:
            return ""

    def follow(self, place: Moved) -> None:
        """Ask there next. Raises `Unfetched` where that was done too often."""
        self.hops += 1
        if self.hops > REDIRECTS:
            raise Unfetched(f"more than {REDIRECTS} redirects")
        self.url = place.url

    def failed(self, reason: str, status: str = NOT_FETCHED) -> Row:
        """The row without a picture."""
        return Row(self.row, self.wish.url, self.wish.caption, status, reason)


class _Download:
    """One split."""

    def __init__(self, folder: Path, urls: UrlList, tally: Tally, manner: Manner, answered: str) -> None:
        """`answered`: an address that has given a picture; "" where none has."""
        self._folder, self._urls, self._tally, self._manner = folder, urls, tally, manner
        self._pace: Pace[_Task] = Pace(manner.per_second, manner.per_host)
        self._bounds = Bounds(int(manner.max_mb * 10**6), manner.allow_local)
        self._shards: dict[int, TarShard] = {}  # in the making
        self._whole: dict[int, bool] = {}
        self._waiting = 0  # tasks that are neither recorded nor silent
        self._running = 0
        self._silent: list[Row] = []  # rows whose servers did not answer, the last ones of all
        self._dead: dict[str, int] = {}  # host -> rows one after the other that it did not answer
        self._answered = answered
        self._results: SimpleQueue[Future[tuple[_Task, Row | Moved | Unfetched]]] = SimpleQueue()

    def run(self) -> str:
        """Do all rows that are not done yet; returns an address that gave a picture, "" where none did."""
        rows = enumerate(self._urls.rows())
        asker = client(self._manner.threads, self._bounds)
        pool = ThreadPoolExecutor(self._manner.threads)
        try:
            while self._fill(rows) or self._waiting:
                wait = self._start(pool, asker)
                try:
                    self._finished(self._results.get(timeout=min(wait, _POLL)), asker)
                except Empty:
                    continue
            self._settle(asker)
            return self._answered
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            asker.close()
            for shard in self._shards.values():
                shard.close()

    def _fill(self, rows: enumerate[Wish]) -> bool:
        """Take in rows as long as not too many wait; returns whether there may be more."""
        most = max(2 * self._manner.shard_rows, 4 * self._manner.threads)
        while self._waiting < most:
            row, wish = next(rows, (-1, Wish("", "")))
            if row < 0:
                return False
            shard = self._shard(row // self._manner.shard_rows)
            if shard is None or row in shard:
                continue
            if fault := wish.fault or refusal(wish.url, self._bounds):  # no turn of its host is spent on it
                self._record(Row(row, wish.url, wish.caption, NOT_FETCHED, fault))
                continue
            task = _Task(row, wish, wish.url)
            self._pace.put(task, task.host)
            self._waiting += 1
        return True

    def _start(self, pool: ThreadPoolExecutor, asker: httpx.Client) -> float:
        """Send out what may go; returns the seconds until more may."""
        while self._running < self._manner.threads:
            task = self._pace.next(time.monotonic())
            if not isinstance(task, _Task):
                return max(task, 0.001)
            pool.submit(self._work, asker, task).add_done_callback(self._results.put)
            self._running += 1
        return _POLL

    def _work(self, asker: httpx.Client, task: _Task) -> tuple[_Task, Row | Moved | Unfetched]:
        """In a thread: the row with its picture or its fault, where else it lies, or why nothing came."""
        wish = task.wish
        try:
            found = fetch(asker, task.url, self._bounds)
            if isinstance(found, Moved):
                task.follow(found)
                return task, found
            picture = resized(found, self._manner.image_size, self._manner.resize)
            return task, Row(task.row, wish.url, wish.caption, SUCCESS, "", picture)
        except Unfetched as error:
            return task, error
        except ImageError as error:
            return task, task.failed(_fault(error), NOT_READ)

    def _finished(self, future: Future[tuple[_Task, Row | Moved | Unfetched]], asker: httpx.Client) -> None:
        self._running -= 1
        task, found = future.result()
        if isinstance(found, Moved):  # a request like others: limited in rate
            self._pace.put(task, task.host, time.monotonic())
        elif isinstance(found, Row):
            self._waiting -= 1
            self._answered = task.wish.url
            self._answer(task.host, found)
        elif not self._put_off(task, found):
            self._waiting -= 1
            if found.answered:
                self._answer(task.host, task.failed(found.reason))
            else:
                self._silence(task.host, task.failed(found.reason), asker)

    def _put_off(self, task: _Task, why: Unfetched) -> bool:
        """Have it tried again where that may help, and its host left alone where it asks for it."""
        until = time.monotonic() + max(min(why.wait, _LONGEST_WAIT), WAITS[min(task.tries, len(WAITS) - 1)])
        if why.wait or why.reason == "HTTP 429":
            self._pace.delay(task.host, until)
        gone = not why.answered and self._dead.get(task.host, 0) >= _GONE
        if not why.again or task.tries >= self._manner.retries or gone:
            return False
        task.tries += 1
        self._pace.put(task, task.host, until)
        return True

    def _answer(self, host: str, row: Row) -> None:
        """Record a row whose server was there, and those before it whose servers were not: there is a network."""
        self._dead.pop(host, None)
        for each in (*self._silent, row):
            self._record(each)
        self._silent.clear()

    def _silence(self, host: str, row: Row, asker: httpx.Client) -> None:
        """Keep a row whose server did not answer until it is known whether there is a network."""
        self._dead[host] = self._dead.pop(host, 0) + 1  # it is the last one now
        if len(self._dead) > _REMEMBERED:
            del self._dead[next(iter(self._dead))]
        self._silent.append(row)
        if len(self._silent) >= _SILENT:
            self._settle(asker)

    def _settle(self, asker: httpx.Client) -> None:
        """Record the rows whose servers were silent, if it was they: an address that answered before must do so again.

        Else `DataError`: rows that failed for want of a network are not counted as failed, unless that is asked for.
        """
        if self._silent and not self._manner.give_up and not self._network(asker):
            first = self._silent[0]
            raise DataError(
                f"no server answers any more: {len(self._silent)} rows without an answer, the first {first.url} "
                f"({first.reason}); when the network is there the same command goes on, and where it is there and the "
                f"servers are gone, --give-up counts such rows as failed"
            )
        for row in self._silent:
            self._record(row)
        self._silent.clear()

    def _network(self, asker: httpx.Client) -> bool:
        if not self._answered:
            return False
        try:
            fetch(asker, self._answered, self._bounds)
        except Unfetched as error:
            return error.answered
        return True

    def _record(self, row: Row) -> None:
        shard = self._shards[row.number // self._manner.shard_rows]
        shard.add(row)
        self._tally.add(row.reason or SUCCESS)
        self._close(shard)

    def _shard(self, number: int) -> TarShard | None:
        """The shard in the making, taken up where it is half done; None where it is whole."""
        if number in self._shards:
            return self._shards[number]
        if number not in self._whole:
            stats = stats_of(self._folder, number)
            self._whole[number] = stats is not None
            if stats is not None:
                self._tally.found(stats["status_dict"])
            else:
                per_shard = self._manner.shard_rows
                rows = min(per_shard, self._tally.total - number * per_shard)
                shard = self._shards[number] = TarShard(self._folder, number, rows, per_shard)
                self._tally.found(shard.reasons())
                self._answered = self._answered or shard.address
                self._close(shard)
        return self._shards.get(number)

    def _close(self, shard: TarShard) -> None:
        if shard.full:
            shard.finish()
            del self._shards[shard.number]


def _fault(error: ImageError) -> str:
    """One of a few reasons, so that they can be counted."""
    text = str(error)
    known = ("not an image in a known format", "smaller than 16 pixels", TOO_LARGE)
    if "decompression bomb" in text:  # Pillow's own word for still larger ones
        return TOO_LARGE
    return next((reason for reason in known if reason in text), "cannot be read")
