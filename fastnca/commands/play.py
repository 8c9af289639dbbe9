"""`fastnca play`: a saved model in the browser, served to this machine only."""

import sys
import webbrowser
from argparse import Namespace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fastnca.commands.export import title_of
from fastnca.commands.show import load_model
from fastnca.exporting import export_html
from fastnca.version import __version__

HOST = "127.0.0.1"

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",  # the page's own policy says the rest
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def play(arguments: Namespace) -> int:
    """Serve the page until Ctrl-C."""
    model = load_model(arguments.model)
    title = title_of(arguments.model)
    page = export_html(model, title=title, size=arguments.size)
    with make_server(page, arguments.port) as server:
        address = f"http://{HOST}:{server.server_port}/"
        print(f"{address} shows {title}; Ctrl-C ends it", flush=True)
        if not arguments.no_browser and not webbrowser.open(address):
            print(f"fastnca: no browser was found; open {address} yourself", file=sys.stderr)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def make_server(page: str, port: int = 0) -> ThreadingHTTPServer:
    """Make a server of one page.

    It answers GET and HEAD of `/`, and only where the request names it by the address it has:
    another site's name that leads here must not read the page.

    Args:
        page: HTML.
        port: 0 takes one that is free.

    Raises:
        OSError: the port is taken.
    """
    content = page.encode()

    class Handler(BaseHTTPRequestHandler):
        server_version = f"fastnca/{__version__}"
        sys_version = ""
        timeout = 10  # seconds; a silent client must not hold a thread for ever

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def answer(self, with_body: bool) -> None:
            hosts = (f"{HOST}:{server.server_port}", f"localhost:{server.server_port}")
            if self.headers.get_all("Host") not in [[host] for host in hosts]:
                self.send_error(HTTPStatus.FORBIDDEN, "the address of this page is another")
            elif self.path.partition("?")[0] != "/":
                self.send_error(HTTPStatus.NOT_FOUND)
            else:
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if with_body:
                    self.wfile.write(content)

        def end_headers(self) -> None:
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing of requests."""

    server = ThreadingHTTPServer((HOST, port), Handler)
    server.daemon_threads = True
    return server
