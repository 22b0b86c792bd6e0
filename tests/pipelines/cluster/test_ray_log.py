"""What Ray says goes to a file, the program's own lines to the terminal, and an error names the file."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli.main import main
from pipelines.cluster import ray_log
from pipelines.cluster.ray_log import KEPT_FILES, LOGGERS, RayLog
from tadvae.base.errors import UserError


@pytest.fixture
def loggers():
    kept = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in LOGGERS}
    yield
    for name, (handlers, propagate) in kept.items():
        logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, propagate


@pytest.fixture
def dispatcher():
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as lines

    before = list(lines.handlers)
    yield lines
    lines.handlers = before


def test_loggers_and_workers_write_to_the_file(tmp_path, capsys, loggers, dispatcher):
    log = RayLog(tmp_path / "logs")
    assert log.mention() == ""
    log.capture()
    logging.getLogger("ray.train").warning("a warning of Ray Train")
    batch = {"pid": 7, "ip": "127.0.0.1", "is_err": True, "actor_name": "PreemptionWatcher"}
    dispatcher.emit({**batch, "lines": ["nothing was preempted", "tadvae: restart at epoch 2"]})
    dispatcher.emit({**batch, "pid": "autoscaler", "lines": ["Autoscaler status"]})
    printed = capsys.readouterr()
    assert printed.err == "tadvae: restart at epoch 2\n"
    assert printed.out == ""
    text = log.place.read_text()
    assert "WARNING ray.train: a warning of Ray Train" in text
    assert "(PreemptionWatcher pid=7) nothing was preempted" in text
    assert "Autoscaler" not in text
    assert str(log.place) in log.mention()
    assert log.place.parent.stat().st_mode & 0o077 == 0


def test_verbose_leaves_everything_as_ray_does_it(tmp_path, loggers, dispatcher):
    log = RayLog(tmp_path)
    log.verbose = True
    before = list(dispatcher.handlers)
    log.capture()
    assert dispatcher.handlers == before
    assert not log.place.exists()


def test_old_files_are_deleted(tmp_path):
    for number in range(KEPT_FILES + 5):
        (tmp_path / f"ray-20260101-{number:06d}-1.log").write_text("old")
    log = RayLog(tmp_path)
    log.write("new")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == KEPT_FILES
    assert log.place.name in names
    assert names[0] > "ray-20260101-000005"


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    log = RayLog(tmp_path / "file" / "logs")
    log.write("lost")
    assert log.mention() == ""


def test_the_sentence_of_an_error_names_the_file(monkeypatch, capsys):
    def failing(*arguments, **options):
        error = UserError("the run failed; look at the store.")
        error.add_note("Ray's own messages are in /somewhere/ray.log")
        raise error

    monkeypatch.setattr("pipelines.inspect.describe", failing)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "store"])
    assert ended.value.code == 2
    said = "tadvae: the run failed; look at the store. (Ray's own messages are in /somewhere/ray.log)\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("words", [["--verbose", "inspect", "nowhere"], ["inspect", "nowhere", "--verbose"]])
def test_verbose_is_understood_before_and_after_the_command(monkeypatch, words):
    monkeypatch.setattr(ray_log.RAY_LOG, "verbose", False)
    with pytest.raises(SystemExit):
        main(words)
    assert ray_log.RAY_LOG.verbose


def test_nothing_of_ray_is_imported_to_show_help():
    code = "import sys, pipelines.cli.main\nassert 'ray' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3], timeout=120)
