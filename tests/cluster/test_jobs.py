"""Every command of docs/cluster.md, run against a real head; a job over S3 equals the local run."""

import json
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from safetensors.numpy import load

from cluster.running import ROOT, log_records, losses, page_commands
from tadvae.base.filesystem import Location
from tadvae.model.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1500)]


def s3_records(run: str) -> list[dict]:
    return RunFolder(run).steps()


@pytest.fixture(scope="module")
def ran(head, shared, whole_begun) -> dict[str, str]:
    """What each `tadvae doctor` and `ray job` line of the page printed."""
    going = {}
    with ThreadPoolExecutor() as threads:
        for line in page_commands():
            if line.startswith("export ") or line.startswith("ray start --head") or "get-auth-token" in line:
                continue  # the fixtures did these
            command = head.adapt(line, shared)
            if "predict" in command:
                target, context = in_dataset("up")
                command = command.replace("KLF1+MAP2K6", target).replace("k562", f"{context} --dataset up")
            if "-m pipelines predict " not in line:  # which needs the model alone, as evaluate before it
                for each in going.values():
                    each.result()
            going[line] = threads.submit(head.driver.run, command, timeout=1200)
    return {line: each.result() for line, each in going.items()}


def in_dataset(name: str) -> tuple[str, str]:
    """A perturbation and a context of a dataset in the store that the jobs wrote."""
    from tadvae.store.reader import Store

    store = Store.open("s3://lab/store")
    (index,) = [i for i, dataset in enumerate(store.manifest.datasets) if dataset.name == name]
    bags = store.bags[(store.bags["dataset"] == index) & (store.bags["perturbation"] != store.control)]
    first = bags.iloc[0]
    return store.perturbations["name"].iloc[first["perturbation"]], store.manifest.contexts[first["context"]]


def test_the_page_names_every_entry_point():
    text = " ".join(page_commands())
    for name in ("convert", "train", "evaluate", "predict"):
        assert f"-- python -m pipelines {name} " in text
    assert "tadvae doctor" in text
    for line in page_commands():
        assert line.startswith(("ray ", "tadvae ", "export ")), line


def test_every_command_of_the_page_runs(ran):
    jobs = [printed for line, printed in ran.items() if line.startswith("ray job submit")]
    assert len(jobs) == 4
    assert all(re.search(r"Job 'raysubmit_\w+' succeeded", printed) for printed in jobs)
    listing = next(printed for line, printed in ran.items() if line == "ray job list")
    assert listing.count("SUCCEEDED") >= 4
    bucket = Location.of("s3://lab")
    assert json.loads((bucket / "evaluation.json").read_text())["summary"]
    assert (bucket / "predicted.h5ad").read_bytes().startswith(b"\x89HDF")


def test_the_log_of_a_job_is_plain_lines(ran):
    (printed,) = [text for line, text in ran.items() if "-m pipelines train " in line]
    line = r"^training bags: \d+/\d+ epoch \d+/10 step \d+ loss [\d.]+ .*cells/s wait \d+%$"
    assert re.search(line, printed, re.M)
    after = printed[printed.index("training bags") :]
    assert "\r" not in after
    assert not re.search("^Traceback", printed, re.M)


def test_a_job_over_s3_equals_the_local_run(ran, whole):
    assert losses(s3_records("s3://lab/run")) == losses(log_records(whole))
    here = load((whole / "model/model.safetensors").read_bytes())
    there = load((Location.of("s3://lab/run") / "model/model.safetensors").read_bytes())
    assert {k: v.tobytes() for k, v in here.items()} == {k: v.tobytes() for k, v in there.items()}
    names = (Location.of("s3://lab/run") / "tensorboard").names()
    assert [name for name in names if "tfevents" in name]


def test_bad_input_fails_the_job_with_one_sentence_and_code_2(head, shared, ran):
    printed = head.driver.run(
        "ray job submit --working-dir . -- python -m pipelines train s3://lab/nowhere --out s3://lab/other",
        code=1,
    )
    assert "tadvae: s3://lab/nowhere: not a cell store" in printed
    assert not re.search("^Traceback", printed, re.M)
    status = re.search(r"raysubmit_\w+", printed).group()
    listing = head.driver.run(["ray", "job", "list"])
    assert re.search(rf"{status}.*?driver_exit_code=2\b", listing, re.S)
    assert not Location.of("s3://lab/other").exists()


HELP = """
import contextlib, io, json, runpy, sys
from tune.cli import main

def said(call, *words):
    sys.argv, text = list(words), io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        call()
    return text.getvalue()

def module():
    runpy.run_module("pipelines", run_name="__main__")

names = sys.argv[1:]
print(json.dumps({n: [said(module, "x", n, "--help"), said(main, "tadvae", n, "--help")] for n in names}))
"""


def test_the_module_has_the_options_of_the_command():
    names = ["convert", "train", "evaluate", "predict", "doctor"]
    command = [sys.executable, "-c", HELP, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout)
    for name in names:
        module, command = found[name]
        assert module == command
        assert f"tadvae {name}" in module


def test_an_upload_is_small(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    create_package(str(ROOT), tmp_path / "package.zip", include_gitignore=True)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = set(package.namelist())
    assert {"pipelines/train/train.py", "tadvae/model/tadvae.py"} <= {
        name.partition("/")[2] for name in names
    } | names
    assert not [name for name in names if "tests/" in name or "docs/" in name or "benchmarks/" in name]
    assert (tmp_path / "package.zip").stat().st_size < 10e6
