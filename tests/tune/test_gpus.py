"""GPUs of a sweep: what a trial asks Ray for, how many have room, and what the command accepts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tune.cli import main
from tune.config import SweepConfig
from tune.sweep import resources, room

ROOT = Path(__file__).parents[2]
WITHOUT_A_CLUSTER = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def sweep(small_space, **changes):
    return SweepConfig.parse({**small_space, **changes}, "small space")


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({}, {"CPU": 1}),
        ({"gpus": 1}, {"CPU": 1, "GPU": 1}),
        ({"gpus": 0.25}, {"CPU": 1, "GPU": 0.25}),
        ({"gpus": 1, "workers": 2}, {"CPU": 0.01}),  # Ray Train asks for its workers'
    ],
)
def test_what_a_trial_asks_for(small_space, changes, asked):
    assert resources(sweep(small_space, **changes)) == asked


@pytest.mark.parametrize(
    ("cluster", "changes", "n"),
    [
        ({"CPU": 16.0}, {}, 14),
        ({"CPU": 2.0}, {}, 1),
        ({"CPU": 16.0}, {"workers": 4}, 3),
        ({"CPU": 16.0, "GPU": 2.0}, {"gpus": 1}, 2),
        ({"CPU": 16.0, "GPU": 2.0}, {"gpus": 0.25}, 8),
        ({"CPU": 16.0, "GPU": 2.0}, {"gpus": 0.4}, 4),  # 0.2 of each GPU is left over
        ({"CPU": 16.0, "GPU": 2.0}, {"gpus": 0.1}, 14),  # CPUs end first
        ({"CPU": 16.0, "GPU": 4.0}, {"gpus": 1, "workers": 2}, 2),
        ({"CPU": 64.0, "GPU": 1.0}, {"gpus": 1 / 3}, 3),
    ],
)
def test_room_is_counted_in_gpus(small_space, cluster, changes, n):
    assert room(cluster, sweep(small_space, **changes)) == n


@pytest.mark.parametrize(
    ("words", "gpus"),
    [
        (["--gpu"], 1.0),
        (["--gpu", "--trials", "3"], 1.0),
        (["--gpu", "0.25"], 0.25),
        (["--gpu=0.5"], 0.5),
        ([], 0.0),
    ],
)
def test_gpu_stands_alone_or_with_a_fraction(monkeypatch, tmp_path, words, gpus):
    asked = []
    monkeypatch.setattr("tune.sweep.run_sweep", lambda store, out, config: asked.append(config) or [])
    with pytest.raises(SystemExit):
        main(["tune", "run", "store", "--out", str(tmp_path / "out"), *words])
    assert [config.gpus for config in asked] == [gpus]


def test_paper_is_a_grid_that_says_what_it_leaves_out(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr("tune.sweep.run_sweep", lambda store, out, config: asked.append(config) or [])
    command = ["tune", "run", "store", "--out", str(tmp_path / "out"), "--paper"]
    with pytest.raises(SystemExit):
        main([*command, "--set", "experiment.train.epochs=2"])
    said = " ".join(capsys.readouterr().out.split())
    assert "25 trials: masking × d_embed × encoder.kind in every combination" in said
    assert "encoder.kind varies only where masking is hard or soft or soft_log or none" in said
    assert asked[0].experiment.train.epochs == 2
    for more, sentence in (
        (["--config", "x.yaml"], "--paper has its own"),
        (["--trials", "3"], "a grid has"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*command, *more])
        assert ended.value.code == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(torch.cuda.is_available(), reason="trials would find the GPU that the test pretends")
def test_a_trial_is_given_the_gpu_that_it_asks_for(store, space_file, tmp_path):
    """A Ray that pretends two GPUs starts trials on them, and torch finds none there."""
    code = (
        "import pipelines, ray, sys\n"
        "from tune.config import SweepConfig\n"
        "from tune.sweep import run_sweep\n"
        "ray.init(address='local', num_cpus=8, num_gpus=2)\n"
        "store, out, space = sys.argv[1:]\n"
        "config = SweepConfig.load(space, ['trials=2', 'gpus=0.5'])\n"
        "for record in run_sweep(store, out, config):\n    print(record.status, record.reason)\n"
        "config = SweepConfig.load(space, ['gpus=1', 'max_concurrent=3'])\n"
        "try:\n    run_sweep(store, out + '2', config)\nexcept Exception as error:\n    print(error)\n"
    )
    words = [str(store.folder), str(tmp_path / "out"), str(space_file)]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=WITHOUT_A_CLUSTER,
        timeout=500,
    )
    said = done.stdout.splitlines()
    assert sum(line.startswith("failed --gpu: torch ") for line in said) == 2, done.stderr
    assert "2 GPUs, but this run needs 3" in done.stdout
