"""A tiny reverse proxy, which shows a dashboard under a path of its own host."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit


@contextmanager
def reverse_proxy(upstream: str, prefix: str, *, strips: bool) -> Iterator[str]:
    """Forward what is below `prefix`, with or without it; yields the address of the prefix."""
    port = urlsplit(upstream).port

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not (self.path == prefix or self.path.startswith(prefix + "/")):
                self.send_error(404)
                return
            path = self.path.removeprefix(prefix) if strips else self.path
            with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
                connection.request("GET", path or "/", headers=dict(self.headers))
                answer = connection.getresponse()
                body = answer.read()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}{prefix}/"
        finally:
            server.shutdown()
            thread.join()
