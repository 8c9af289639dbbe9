"""`fastnca play` serves a page to this machine and to nobody else."""

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import pytest
import torch

from fastnca import NeuralCA
from fastnca.commands import play as command
from fastnca.commands.parser import main
from fastnca.commands.play import make_server
from tests.browser import read_facts

PAGE = "<!DOCTYPE html><p>Grüße"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A saved model."""
    model = NeuralCA(6, 5)
    torch.nn.init.normal_(model.update_net[-1].weight, std=0.1)
    model.metadata["size"] = [12, 9]
    model.save(tmp_path / "newt")
    return tmp_path / "newt"


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server that answers."""
    with make_server(PAGE) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def ask(port: int, method: str = "GET", path: str = "/", **headers: str) -> tuple:
    """Send a request; return the response and its body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response: HTTPResponse = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/", "/?path=js"])
def test_the_page_is_served(port, path):
    response, body = ask(port, path=path)
    assert (response.status, body.decode()) == (200, PAGE)
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert "Python" not in response.headers["Server"]
    assert "Access-Control-Allow-Origin" not in response.headers


def test_head_has_no_body(port):
    response, body = ask(port, "HEAD")
    assert (response.status, body) == (200, b"")
    assert int(response.headers["Content-Length"]) == len(PAGE.encode())


@pytest.mark.parametrize("path", ["/index.html", "/../etc/passwd", "/favicon.ico", "*"])
def test_nothing_else_is_served(port, path):
    response, body = ask(port, path=path)
    assert response.status == 404
    assert b"Gr" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(port, method):
    assert ask(port, method)[0].status == 501


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "evil.example:{}", ""]
)
def test_foreign_hosts_are_refused(port, host):
    response, body = ask(port, Host=host.format(port))
    assert response.status == 403
    assert b"Gr" not in body
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_localhost_is_this_host(port):
    assert ask(port, Host=f"localhost:{port}")[0].status == 200


def test_it_listens_to_this_machine_only():
    with make_server(PAGE) as server:
        assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("found", [True, False])
def test_play_opens_a_browser_and_ends_with_ctrl_c(run, monkeypatch, capsys, found):
    opened = []

    def look(address):
        opened.append(address)
        return found

    def serve(server):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.webbrowser, "open", look)
    monkeypatch.setattr(command.ThreadingHTTPServer, "serve_forever", serve)
    assert main(["play", str(run)]) == 0
    captured = capsys.readouterr()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", opened[0])
    assert captured.out.startswith(f"{opened[0]} shows newt")
    assert ("no browser was found" in captured.err) is not found
    assert main(["play", str(run), "--no-browser"]) == 0
    assert len(opened) == 1


def test_a_port_that_is_taken_is_an_error(run, port, capsys):
    assert main(["play", str(run), "--no-browser", "--port", str(port)]) == 1
    assert "ddress already in use" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["play", str(run), "--port", "65536"])


@pytest.mark.long
def test_the_command_serves_the_model(run):
    words = [sys.executable, "-m", "fastnca", "play", str(run), "--no-browser"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+)/ ", line)
        assert found, line
        response, body = ask(int(found[1]))
        assert response.status == 200
        assert read_facts(body.decode())["size"] == [12, 9]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
