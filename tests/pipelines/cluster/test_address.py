"""A cluster that does not answer: one sentence, within seconds."""

import socket
import socketserver
import threading
import time

import pytest

from pipelines.cli.main import main
from pipelines.cluster import address as module
from pipelines.cluster.address import find_cluster
from pipelines.cluster.doctor import examine

NOBODY = "127.0.0.1:6399"


@pytest.fixture
def serve():
    """A server that answers every connection with these bytes; returns its address."""
    servers = []

    def serve(answer):
        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.recv(100)
                self.request.sendall(answer)
                if not answer:
                    time.sleep(2)

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def no_ray(monkeypatch):
    """A machine on which no Ray runs."""
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda folder: None)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (NOBODY, ["Connection refused"]),
        (f"ray://{NOBODY}", ["Connection refused"]),
        ("no-such-host.invalid:6379", ["no-such-host.invalid"]),
        ("ray://no-such-host.invalid:10001", ["no-such-host.invalid"]),
        ("auto", ["no Ray runs on this machine"]),
        ("just-a-host", ["HOST:PORT"]),
        ("127.0.0.1:99999", ["HOST:PORT"]),
        ("127.0.0.1:port", ["HOST:PORT"]),
        (f"{'x' * 70}.org:6379", ["cannot be reached"]),
    ],
)
def test_nobody_is_there(refused, monkeypatch, no_ray, address, words):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    began = time.monotonic()
    sentence = refused(find_cluster, address)
    assert time.monotonic() - began < 15
    assert "RAY_ADDRESS" in sentence
    for word in [*words, address]:
        assert word in sentence


def test_something_else_is_there(refused, serve, monkeypatch):
    assert "no Ray" in refused(find_cluster, serve(b"HTTP/1.1 400 Bad Request\r\n"))
    monkeypatch.setattr(module, "SECONDS", 1.0)
    assert "timed out" in refused(find_cluster, serve(b""))
    with socket.socket() as deaf:  # accepts nothing: the machine answers, the program does not
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        assert "timed out" in refused(find_cluster, f"127.0.0.1:{deaf.getsockname()[1]}")


def test_a_server_of_grpc_is_believed(serve):
    address = serve(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    assert find_cluster(address) == address
    assert find_cluster(f"ray://{address}") == f"ray://{address}"


@pytest.mark.parametrize("words", [["convert", "{spec}", "--out", "store"], ["doctor"]])
def test_commands_say_so(words, monkeypatch, capsys, write_spec, screen, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    spec = str(write_spec(screen))
    began = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        main([word.format(spec=spec) for word in words])
    assert time.monotonic() - began < 20
    assert ended.value.code == 2
    assert "Connection refused" in "".join(capsys.readouterr())
    assert not list(tmp_path.glob("store*"))


def test_the_doctor_names_it(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    (finding,) = examine(1, False, None)
    assert f"no server answers at RAY_ADDRESS={NOBODY} (Connection refused)" in str(finding)
