"""What ``tadvae doctor --gpu`` says of GPUs, drivers and builds of torch that are not here."""

import subprocess
from dataclasses import replace

import pytest

from pipelines.cluster import gpus
from pipelines.cluster.gpus import Gpu, GpuFacts, facts, problems, tokens_that_fit

H100 = Gpu("H100", (9, 0), 80 * 2**30)
A10G = Gpu("A10G", (8, 6), 24 * 2**30)
SOUND = GpuFacts("580.95.05", "13.0", ("sm_75", "sm_80", "sm_86", "sm_90", "compute_120"), (H100,), True)


def test_a_sound_node():
    assert list(problems(SOUND, 1)) == []
    assert list(problems(SOUND, 1, tokens=768_000)) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"cuda": None}, "built for CPUs only"),
        ({"driver": "535.274.02"}, "the driver 535.274.02 is too old for torch's CUDA 13.0, which needs 580"),
        ({"driver": "470.57", "cuda": "12.8"}, "which needs 525"),
        ({"driver": None}, "no NVIDIA driver"),
        ({"gpus": ()}, "offers 1 GPUs, of which torch sees 0"),
        ({"gpus": (Gpu("K80", (3, 7), 2**33),)}, "not compiled for K80 (compute capability 3.7"),
        ({"gpus": (Gpu("V100", (7, 0), 2**34),)}, "not compiled for V100 (compute capability 7.0"),
        ({"nccl": False}, "no NCCL"),
    ],
)
def test_what_does_not_fit(change, found):
    (problem,) = problems(replace(SOUND, **change), 1)
    assert found in problem[0]
    assert len(problem[1]) > 10


def test_a_newer_driver_and_a_newer_card_fit():
    assert not list(problems(replace(SOUND, driver="590.1", cuda="12.6"), 1))
    later = replace(SOUND, gpus=(Gpu("L40", (8, 9), 2**35), Gpu("later", (13, 0), 2**35)))
    assert not list(problems(later, 2))
    only = replace(SOUND, architectures=("sm_90a",), gpus=(Gpu("later", (12, 0), 2**35),))
    assert list(problems(only, 1))


def test_tokens_that_do_not_fit():
    node = replace(SOUND, gpus=(A10G, A10G))
    (problem,) = problems(node, 2, tokens=5_000_000)
    assert "A10G has 24 GiB" in problem[0]
    assert "5,000,000" in problem[0]
    assert not list(problems(node, 2, tokens=tokens_that_fit(A10G.memory)))


def test_facts_of_this_machine(monkeypatch):
    def answers(*_, **__):
        return subprocess.CompletedProcess([], 0, stdout="580.65.06\n580.65.06\n")

    monkeypatch.setattr(subprocess, "run", answers)
    assert facts().driver == "580.65.06"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    assert gpus.facts().driver is None
