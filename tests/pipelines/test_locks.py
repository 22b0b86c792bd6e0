"""Two commands on one output folder: the second ends with a sentence, without Ray, and changes nothing."""

import os
import shutil

import pytest

from tadvae.base.filesystem import LOCK, Location
from tadvae.base.lock import locked
from tune.cli import main


def ends(words, code):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == code


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["convert", "{spec}", "--out", "{out}"], "out.partial"),
        (["train", "{store}", "--out", "{out}", "--set", "seed=7"], "out"),
        (["train", "{store}", "--out", "{out}", "--seeds", "2"], "out"),
        (["tune", "run", "{store}", "--out", "{out}", "--trials", "1"], "out"),
    ],
)
def test_a_folder_that_is_held(simulated, store, tmp_path, capsys, words, folder):
    places = {"spec": simulated.spec, "store": store.folder, "out": tmp_path / "out"}
    place = Location.of(tmp_path / folder)
    with locked(place):
        ends([word.format(**places) for word in words], 2)
        sentence = capsys.readouterr().err
        assert f"{place}: process {os.getpid()} on {os.uname().nodename} is writing" in sentence
        assert len(sentence.splitlines()) == 1
        assert os.listdir(place.path) == [LOCK]
    assert not list(tmp_path.iterdir())


def test_a_run_that_another_command_began(store, tmp_path, capsys):
    """The lock is free again, and the settings of the run are compared as ever."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").touch()
    ends(["train", str(store.folder), "--out", str(tmp_path / "out")], 2)
    assert "other files" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["notes.txt"]
    shutil.rmtree(tmp_path / "out")
    ends(["train", str(store.folder), "--out", str(tmp_path / "a/b/out"), "--resume"], 2)
    assert "no run to resume" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
