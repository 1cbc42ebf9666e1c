"""Pictures a second of `vlbeit prepare cc12m` from a server on this machine.

    OMP_NUM_THREADS=1 python benchmarks/download_speed.py --pictures 400

The server runs in a process of its own and gives 16 pictures of 640x480 pixels and about 130 kB in turn, so that what
is measured is the work of the program: HTTP, decoding, shrinking to --image-size, encoding, writing.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from vlbeit import table
from vlbeit.data_prep import cc12m
from vlbeit.data_prep.manner import Manner

CASES = (("keep_ratio", 384), ("keep_ratio", 224), ("no", 384))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--threads", type=int, default=32)
    options = parser.parse_args()
    found, told = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.Process(target=serve, args=(told,), daemon=True)
    server.start()
    port = found.recv()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        urls = (f"http://127.0.0.1:{port}/{number}.jpg\tcaption {number}\n" for number in range(options.pictures))
        (folder / "cc12m.tsv").write_text("".join(urls))
        for resize, side in CASES:
            out = folder / f"{resize}-{side}"
            start, busy = time.perf_counter(), time.process_time()
            manner = Manner(options.threads, 0, 0, image_size=side, resize=resize, allow_local=True)
            cc12m.prepare(out, from_=[str(folder)], manner=manner)
            seconds, busy = time.perf_counter() - start, time.process_time() - busy
            size = sum(path.stat().st_size for path in out.rglob("*.tar")) / options.pictures / 1e3
            rate, cost = options.pictures / seconds, 1e3 * busy / options.pictures
            rows.append((resize, side, f"{rate:.0f}/s", f"{cost:.1f} ms", f"{size:.0f} kB"))
    table.show(("--resize", "--image-size", "pictures", "processor time of one", "stored of one"), rows)
    server.terminate()
    server.join()


def serve(told: Any) -> None:
    """Answer every request with one of the pictures; the port is told first."""
    pictures = [_picture(number) for number in range(16)]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            data = pictures[int(self.path.strip("/").partition(".")[0]) % len(pictures)]
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.send(server.server_port)
    server.serve_forever()


def _picture(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1)).save(out, "JPEG", quality=90)
    return out.getvalue()


if __name__ == "__main__":
    main()
