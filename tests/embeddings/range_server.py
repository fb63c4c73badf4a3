"""A file server with byte ranges and no listing, like an object store: `range_server.py FOLDER`.

It runs as a process of its own, because rasterio holds the GIL while GDAL waits for an answer.
"""

from __future__ import annotations

import http.server
import re
import sys
from pathlib import Path


class RangeServer(http.server.BaseHTTPRequestHandler):
    folder = Path(sys.argv[-1])

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, *, body=True):
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        total = len(data)
        match = re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if match:
            first, last = match.groups()
            start = int(first) if first else total - int(last)
            stop = min(int(last) + 1, total) if first and last else total
            data = data[start:stop]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), RangeServer)
    print(server.server_port, flush=True)
    server.serve_forever()
