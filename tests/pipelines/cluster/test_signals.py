"""A command that is stopped from outside: one sentence, and the exit code that shells expect."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml

from pipelines.cluster.signals import handlers_kept, stoppable
from tadvae.datasets.registry import registered

COMMAND = [sys.executable, "-m", "pipelines", "datasets", "fetch"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_waits(tmp_path, number, code):
    """For a server that takes the request and does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        entry = next(iter(registered().values())).model_dump(mode="json")
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**entry, "url": url}))
        words = [*COMMAND, str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out")]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        server.settimeout(60)
        connection, _ = server.accept()
        process.send_signal(number)
        printed, _ = process.communicate(timeout=60)
        connection.close()
    assert process.returncode == code
    (line,) = printed.splitlines()
    assert line.startswith(f"tadvae: stopped by {number.name}; give the same command again")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("other", [None, RuntimeError, SystemExit])
def test_whatever_becomes_of_the_interrupt(number, other, capsys):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def work():
        with stoppable():
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            except KeyboardInterrupt:
                if other is not None:
                    raise other("of Ray") from None

    with pytest.raises(SystemExit) as ended:
        work()
    assert ended.value.code == 128 + number
    assert f"stopped by {number.name}" in capsys.readouterr().err
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_without_a_signal_nothing_changes():
    with pytest.raises(RuntimeError, match="own"), stoppable():
        raise RuntimeError("its own")
    with stoppable():
        pass


def test_handlers_of_others_do_not_stay():
    before = signal.getsignal(signal.SIGTERM)
    with handlers_kept():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == before
