"""``tadvae tune`` and ``python -m tune``: exit codes, sentences, and what the wheel carries."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from sweep_runs import WITHOUT_A_CLUSTER

from tune.cli import main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "/nowhere", "--out", "{out}"], "/nowhere"),
        (["run", "/nowhere", "--out", "{out}", "--set", "trials=many"], "'trials'"),
        (["run", "/nowhere", "--out", "{out}", "--resume", "--workers", "2"], "--resume continues"),
        (["table", "{out}"], "no sweep"),
        (["table", "{out}", "--format", "csv"], "name their folder with --out"),
        (["table", "{out}", "--out", "{out}", "--format", "xls"], "--format xls: no such format"),
    ],
)
def test_the_command_ends_with_a_sentence_and_2(tmp_path, capsys, arguments, sentence):
    out = str(tmp_path / "out")
    with pytest.raises(SystemExit) as ended:
        main(["tune", *(argument.replace("{out}", out) for argument in arguments)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("tadvae: ")
    assert not Path(out).exists()


@pytest.mark.slow
def test_the_job_entry_point_has_exit_codes(tmp_path):
    command = [sys.executable, "-m", "tune", "run", "/nowhere", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=WITHOUT_A_CLUSTER, timeout=300
    )
    assert done.returncode == 2
    assert done.stderr.startswith("tadvae: /nowhere")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_wheel_carries_the_space(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, check=True, cwd=ROOT, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        scripts = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert {
        "tune/cli.py",
        "tune/configs/paper.yaml",
        "tune/configs/space.yaml",
        "pipelines/cli/main.py",
        "tadvae/model/tadvae.py",
    } <= names
    templates = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("t*/**/*.j2")}
    assert len(templates) == 9
    assert templates | {"tadvae/report/templates/page.css", "tadvae/report/templates/table.js"} <= names
    assert "tadvae = tune.cli:main" in scripts
