"""A sweep whose store, trials and records are all on S3."""

import json

import pytest
import yaml

from cluster.running import EXPERIMENT, copy_to_s3
from tadvae.base.filesystem import Location
from tadvae.model.run_folder import RunFolder
from tadvae.model.weights import WEIGHTS
from tune.records import read_records

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]


def test_two_trials_on_s3(head, shared, local_store, tmp_path):
    copy_to_s3(local_store, "s3://lab/sweep-store")
    experiment = yaml.safe_load((shared / "experiment.yaml").read_text())
    experiment["train"] = {**EXPERIMENT["train"], "epochs": 2, "checkpoint_every": None}
    experiment["validation"] = {"every": 1, "folds": 2}
    parameters = {"train.learning_rate": {"loguniform": [1e-3, 1e-2]}}
    space = {
        "trials": 2,
        "max_concurrent": 2,
        "scheduler": {"grace_epochs": 1},
        "experiment": experiment,
        "parameters": parameters,
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    command = ["python", "-m", "tune", "run", "s3://lab/sweep-store", "--out", "s3://lab/sweep"]
    printed = head.driver.run([*command, "--config", str(tmp_path / "space.yaml")])

    sweep = Location.of("s3://lab/sweep")
    records = read_records(sweep)
    assert [r.number for r in records] == [0, 1]
    assert "finished" in {r.status for r in records} <= {"finished", "stopped"}, printed[-4000:]
    for record in records:
        run = sweep / f"trials/{record.number:04d}/run"
        scores = [step["val_pearson_delta"] for step in RunFolder(run).steps() if "val_pearson_delta" in step]
        assert record.curve
        assert [p["val_pearson_delta"] for p in record.curve] == scores[: len(record.curve)]
        if record.status == "finished":
            assert len(record.curve) == 2
            assert (run / f"model/{WEIGHTS}").exists()
    assert not (sweep / "tune").exists()
    assert json.loads((sweep / "sweep.json").read_text())["store"] == "s3://lab/sweep-store"
    finished = [record for record in records if record.status == "finished"]
    best = max(finished, key=lambda record: record.curve[-1]["val_pearson_delta"])
    assert f"# trial {best.number:04d}" in (sweep / "best.yaml").read_text()
    again = head.driver.run([*command, "--resume"])
    assert "all 2 trials have ended; nothing to do" in again
    head.driver.run(["tadvae", "tune", "table", "s3://lab/sweep", "--out", str(tmp_path / "report")])
    assert (tmp_path / "report/sweep.html").exists()
