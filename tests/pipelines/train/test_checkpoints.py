"""Ray Train's list of checkpoints: what it names is deleted later, so it may name nothing else."""

import json

import pytest
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from pipelines.train.checkpoints import SNAPSHOT, require_own_checkpoints
from pipelines.train.on_ray import _user_error_in
from pipelines.train.stop import StopAtUserError
from tadvae.base.errors import StorageError, UserError
from tadvae.model.run_folder import RunFolder

NAMES = ["step-000000002", "step-000000004"]


def listing(names, **others):
    results = [{"version": 0, "checkpoint_dir_name": name, "metrics": {}} for name in names]
    return {"checkpoint_results": results, "latest_checkpoint_result": results[-1], **others}


@pytest.fixture
def run(tmp_path):
    for name in NAMES:
        (tmp_path / "run" / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "victim").mkdir()
    return RunFolder(tmp_path / "run")


def write(run, content):
    (run.place / f"checkpoints/{SNAPSHOT}").write_text(content)


def test_ray_calls_it_so():
    assert SNAPSHOT == CHECKPOINT_MANAGER_SNAPSHOT_FILENAME


def test_own_checkpoints_are_kept(run):
    require_own_checkpoints(run)  # there is no list before the first checkpoint
    write(run, json.dumps(listing(NAMES, validated_checkpoint_dir_names=NAMES[:1])))
    require_own_checkpoints(run)


@pytest.mark.parametrize("name", ["../../victim", "/etc", "..", "step-1/../../../x", "", "step-", None, 3])
@pytest.mark.parametrize("where", ["checkpoint_results", "latest_checkpoint_result", "pending", "lists"])
def test_a_folder_outside_is_refused(run, refused, name, where):
    found = listing(NAMES)
    entry = {"checkpoint_dir_name": name}
    if where == "lists":
        found["failed_validation_checkpoint_dir_names"] = [name]
    else:
        found[where] = [entry] if where != "latest_checkpoint_result" else entry
    write(run, json.dumps(found))
    sentence = refused(require_own_checkpoints, run)
    assert SNAPSHOT in sentence
    assert "which is nothing inside of" in sentence


def test_a_link_does_not_lead_out_of_a_run(run, refused, tmp_path):
    (tmp_path / "run" / "checkpoints" / "step-6").symlink_to(tmp_path / "victim")
    write(run, json.dumps(listing(["step-6"])))
    assert "a symbolic link leads out of it" in refused(require_own_checkpoints, run)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"checkpoint_results": 3}', "[" * 100_000])
def test_a_damaged_list_is_refused(run, refused, text):
    write(run, text)
    assert "damaged list of checkpoints" in refused(require_own_checkpoints, run)


def test_a_checkpoint_that_is_gone(run, refused):
    write(run, json.dumps(listing(["step-000000009"])))
    assert "which is missing" in refused(require_own_checkpoints, run)


def test_damaged_data_ends_a_run_and_absent_storage_does_not():
    callback = StopAtUserError()
    for harmless in (StorageError("no answer."), RuntimeError("killed")):
        callback.after_exception(None, {0: harmless})
    with pytest.raises(UserError, match=r"^damaged\.$"):
        callback.after_exception(None, {0: RuntimeError("killed"), 1: UserError("damaged.")})


def test_the_sentence_of_an_error_is_found():
    """Ray Train restarts workers after a StorageError, and hands over the text of the last one."""
    trace = "Traceback (most recent call last):\n  File x\ntadvae.base.errors.{}: no answer.\n\n"
    for kind in ("UserError", "StorageError"):
        assert str(_user_error_in(WorkerGroupError(trace.format(kind), {}))) == "no answer."
    assert str(_user_error_in(ControllerError(UserError("damaged.")))) == "damaged."
    assert _user_error_in(WorkerGroupError("killed", {})) is None
