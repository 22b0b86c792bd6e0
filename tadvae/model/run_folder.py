"""The folder of a run, or of an ensemble of runs: nothing else opens its files.

A run::

    RUN/run.json config.yaml split.parquet   what was asked for, resolved, and which groups are held out
    RUN/controls.parquet                     some control cells of each context, to predict cells from
    RUN/start.safetensors                    weights that a fine-tuning started with
    RUN/model/                               a model folder (see tadvae.model.tadvae): weights at the end
    RUN/log/steps-*.jsonl                    one line per step
    RUN/log/bags-*.jsonl                     which bags every rank saw, where train.log_bags asks for it
    RUN/log/restart-*.json                   what a restart did again, and which bags it repeats
    RUN/checkpoints/step-…/                  weights, optimizer and position after a step; also what Ray Train
                                             keeps of them
    RUN/evaluation/                          scores that `tadvae evaluate` wrote
    RUN/tensorboard/                         and whatever else a tracker keeps

An ensemble::

    ENSEMBLE/ensemble.json config.yaml       members, and what the intervals are calibrated on
    ENSEMBLE/members/seed-0 …                one run per member
    ENSEMBLE/calibration/fold-0-seed-0 …     runs without a fold of the training perturbations
    ENSEMBLE/calibration.json calibration.safetensors
    ENSEMBLE/evaluation/                     scores that `tadvae evaluate` wrote
"""

import io
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load, save
from safetensors.torch import load as load_tensors
from torch import Tensor

from tadvae.base.checksums import SUMS, CheckedFolder, sums_of, write_sums
from tadvae.base.documents import parse_json
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.cells.ragged import Cells
from tadvae.data.splits import TEST, TRAIN, VALIDATION
from tadvae.model.checkpoints import Checkpoints
from tadvae.model.conformal import Calibration
from tadvae.model.controls import pack_controls, unpack_controls
from tadvae.model.run_log import ABOUT, LOG, LoggedRun
from tadvae.model.weights import CONFIG, WEIGHTS, finish_model
from tadvae.settings.experiment import ExperimentConfig

CHECKPOINTS = "checkpoints"
_SPLIT, _CONTROLS, _MODEL, _START = "split.parquet", "controls.parquet", "model", "start.safetensors"
_ENSEMBLE, _CALIBRATION, _SCALES = "ensemble.json", "calibration.json", "calibration.safetensors"
_EVALUATION = "evaluation"
_BEFORE_ABOUT = {_MODEL, LOG, CONFIG, _SPLIT, _CONTROLS, _START, SUMS}
"""What a run's folder may hold before ``run.json``, which is written last, makes it a run."""
_MEMBER = r"members/seed-\d+"


class RunFolder(LoggedRun):
    """The only reader and writer of the files of a run or an ensemble; its base class has the log.

    Attributes
    ----------
    place
        The folder, on any filesystem.
    """

    # -- what it is ---------------------------------------------------------------------------------

    @property
    def is_finished(self) -> bool:
        """Whether the run has its final weights."""
        return (self.model / WEIGHTS).exists()

    @property
    def is_ensemble(self) -> bool:
        """Whether this is the folder of an ensemble."""
        return (self.place / _ENSEMBLE).exists()

    @property
    def has_model(self) -> bool:
        """Whether there is a model folder inside; a folder without one may be a model folder itself."""
        return self.model.exists()

    @property
    def model(self) -> Location:
        """The model folder of a run."""
        return self.place / _MODEL

    # -- a run's settings and split -----------------------------------------------------------------

    def begin(
        self,
        config: ExperimentConfig,
        split: pd.DataFrame,
        controls: dict[int, Cells],
        about: dict[str, Any],
        start: bytes | None = None,
    ) -> None:
        """Write a run's settings, its split and its control cells; ``run.json`` comes last.

        Parameters
        ----------
        split
            From :func:`tadvae.data.splits.split_groups`.
        controls
            Control cells by row of the vocabulary's contexts.
        about
            Plain values: store, version, workers, number of bags.
        start
            Weights that a fine-tuning starts with, as safetensors.
        """
        (self.place / LOG).make_folder()
        self._files.write(
            {
                **({} if start is None else {_START: start}),
                _CONTROLS: pack_controls(controls),
                CONFIG: config.to_yaml().encode(),
                _SPLIT: _parquet(split),
                ABOUT: json.dumps(about, indent=1).encode(),
            }
        )

    def about(self) -> dict[str, Any]:
        """What ``run.json`` says; a UserError where it is damaged or this is no run."""
        found, data = self._json(ABOUT, store=str, vocabulary_hash=str, bags=int)
        self._files.compare(ABOUT, data)
        return found

    def config(self) -> ExperimentConfig:
        """The resolved settings."""
        place = self.place / CONFIG
        try:
            text = self._files.read(CONFIG).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise self._damaged(CONFIG, type(error).__name__) from None
        return ExperimentConfig.load_text(text, str(place))

    def split(self) -> pd.DataFrame:
        """The groups of the store with the part and the category that the split gave them."""
        split = self._table(_SPLIT)
        if "part" not in split or not split["part"].isin([TRAIN, VALIDATION, TEST, "both"]).all():
            raise self._damaged(_SPLIT, "unknown parts")
        return split

    def controls(self) -> dict[int, Cells]:
        """Control cells by row of the vocabulary's contexts; none where the run keeps none."""
        if not (self.place / _CONTROLS).exists():
            return {}
        try:
            return unpack_controls(self._files.table(_CONTROLS))
        except (ValueError, TypeError, pa.ArrowException) as error:
            raise self._damaged(_CONTROLS, str(error)[:120]) from None

    def start(self) -> dict[str, Tensor] | None:
        """Weights that the run started with; None where it was not fine-tuned."""
        if not self._files.has(_START):
            return None
        try:
            return load_tensors(self._files.read(_START))
        except (OSError, SafetensorError) as error:
            raise self._damaged(_START, type(error).__name__) from None

    def require_run(self, command: str) -> None:
        """Raise a UserError where a model lies without its run.

        Parameters
        ----------
        command
            What needs the run, for the sentence.
        """
        if not self.is_begun or not (self.place / _SPLIT).exists():
            raise UserError(f"{self}: a model without its run; {command} needs the run's folder.")

    def is_begun_with(self, config: ExperimentConfig, vocabulary_hash: str) -> bool:
        """Whether the folder holds this very run; a folder with anything else is a UserError."""
        names = set(self.place.names())
        if not names:
            return False
        if ABOUT in names:
            if self.config() == config and self.about()["vocabulary_hash"] == vocabulary_hash:
                return True
        elif names <= _BEFORE_ABOUT:
            return False  # it was interrupted before it had begun
        raise UserError(
            f"{self}: already holds a run of other settings, or other files; name another folder with --out, "
            "or go on with that run by --resume."
        )

    def config_to_resume(self, vocabulary_hash: str) -> ExperimentConfig:
        """The settings of a run that is to go on with a store of this gene vocabulary, else a UserError."""
        if not (self.place / CONFIG).exists() or not self.is_begun:
            raise UserError(f"{self}: no run to resume (it has no {CONFIG}); start one without --resume.")
        began = self.about()["vocabulary_hash"]
        if began != vocabulary_hash:
            raise UserError(
                f"{self}: this run began with a store of another gene vocabulary ({began}, this one has "
                f"{vocabulary_hash}); resume with the store it began with."
            )
        return self.config()

    def finish(self, weights: bytes) -> None:
        """Write the final weights: the run is finished then, and its log has checksums too."""
        sums = self._files.sums
        if sums is not None:
            names = [f"{LOG}/{info.base_name}" for info in (self.place / LOG).listing() if info.is_file]
            write_sums(self.place, {**sums, **sums_of(self.place, names)})
        finish_model(self.model, weights)

    # -- what others keep here ----------------------------------------------------------------------

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run."""
        return Checkpoints(self.place / CHECKPOINTS)

    def tracker_folder(self, name: str) -> Location:
        """Where a tracker keeps its files."""
        return self.place / name

    # -- evaluation ---------------------------------------------------------------------------------

    def write_scores(self, name: str, table: pd.DataFrame, summary: dict[str, Any]) -> None:
        """Keep the scores of an evaluation: one row per (group, method, metric), and their summary."""
        folder = self.place / _EVALUATION
        folder.make_folder()
        files = {f"{name}.parquet": _parquet(table), f"{name}.json": json.dumps(summary, indent=1).encode()}
        for each in files:  # a category is a name in the run's split
            folder.inside(each, r"\w+\.(parquet|json)", self.place / _SPLIT)
        _evaluation(folder).write(files)

    def scores(self, name: str = "all") -> pd.DataFrame | None:
        """What :meth:`write_scores` wrote; None where this was not evaluated."""
        folder = self.place / _EVALUATION
        if not (folder / f"{name}.parquet").exists():
            return None
        return _evaluation(folder).table(f"{name}.parquet").to_pandas()

    def scores_place(self, name: str) -> str:
        """Where the scores of an evaluation are, for a message."""
        return f"{self}/{_EVALUATION}/{name}.parquet"

    # -- an ensemble --------------------------------------------------------------------------------

    def begin_ensemble(self, config: ExperimentConfig, about: dict[str, Any]) -> None:
        """Write the settings of an ensemble's members, and ``ensemble.json``."""
        self.place.make_folder()
        self._files.write(
            {CONFIG: config.to_yaml().encode(), _ENSEMBLE: json.dumps(about, indent=1).encode()}
        )

    def ensemble(self) -> dict[str, Any]:
        """What ``ensemble.json`` says; a UserError where it is damaged."""
        kinds = {"vocabulary_hash": str, "calibration_folds": int, "seeds_per_fold": int}
        about, data = self._json(_ENSEMBLE, **kinds)
        members = about.get("members")
        if not isinstance(members, list) or not members or not all(isinstance(m, str) for m in members):
            raise self._damaged(_ENSEMBLE, "no members")
        for member in members:
            self.place.inside(member, _MEMBER, self.place / _ENSEMBLE)
        self._files.compare(_ENSEMBLE, data)
        return about

    def members(self) -> dict[str, "RunFolder"]:
        """Folders of an ensemble's runs by name; a run is its own only member, under the name ``run``."""
        if not self.is_ensemble:
            return {"run": self}
        return {name: RunFolder(self.place / name) for name in self.ensemble()["members"]}

    def config_to_resume_ensemble(self, vocabulary_hash: str) -> ExperimentConfig:
        """The settings of an ensemble that is to go on with a store of this vocabulary, else a UserError."""
        if not self.is_ensemble or not (self.place / CONFIG).exists():
            raise UserError(f"{self}: no ensemble to resume (no {_ENSEMBLE}); start one without --resume.")
        if self.ensemble()["vocabulary_hash"] != vocabulary_hash:
            raise UserError(
                f"{self}: this ensemble began with a store of another gene vocabulary; resume with the store "
                "it began with."
            )
        return self.config()

    @property
    def is_calibrated(self) -> bool:
        """Whether the ensemble has a calibration of its intervals."""
        return (self.place / _CALIBRATION).exists()

    def write_calibration(self, calibration: Calibration) -> None:
        """Keep a calibration with its ensemble."""
        arrays = {name: np.asarray(scale) for name, scale in calibration.scale.items()}
        factor = calibration.factor if np.isfinite(calibration.factor) else None
        about = {"level": calibration.level, "factor": factor, "n": calibration.n, "kind": calibration.kind}
        about["with_spread"] = calibration.with_spread
        self._files.write({_SCALES: save(arrays), _CALIBRATION: json.dumps(about, indent=1).encode()})

    def calibration(self) -> Calibration | None:
        """Inverse of :meth:`write_calibration`; None where there is none."""
        if not self.is_calibrated:
            return None
        try:
            data = (self.place / _CALIBRATION).read_bytes()
            about = parse_json(data)
            scale = load(self._files.read(_SCALES))
            result = Calibration(
                float(about["level"]),
                float("inf") if about["factor"] is None else float(about["factor"]),
                scale,
                int(about["n"]),
                str(about["kind"]),
                bool(about["with_spread"]),
            )
            if not 0 < result.level < 1 or not result.factor >= 0:
                raise ValueError("no level or no factor")
            if not all(np.isfinite(each).all() and (each >= 0).all() for each in scale.values()):
                raise ValueError("errors that are negative or not finite")
        except (ValueError, LookupError, TypeError, OSError, SafetensorError) as error:
            raise self._damaged(_CALIBRATION, type(error).__name__) from None
        self._files.compare(_CALIBRATION, data)
        return result

    # -- files --------------------------------------------------------------------------------------

    def _json(self, file: str, **kinds: type) -> tuple[dict[str, Any], bytes]:
        """A mapping, whose fields have these types where it has them, and the bytes of its file."""
        try:
            data = (self.place / file).read_bytes()
            found = parse_json(data)
            if not isinstance(found, dict):
                raise ValueError("no mapping")
        except (ValueError, OSError) as error:
            raise self._damaged(file, type(error).__name__) from None
        for name, kind in kinds.items():
            if not isinstance(found.get(name, kind()), kind):
                raise self._damaged(file, f"{name} is {found[name]!r:.60}")
        return found, data

    def _table(self, name: str) -> pd.DataFrame:
        try:
            return self._files.table(name).to_pandas()
        except (ValueError, pa.ArrowException) as error:
            raise self._damaged(name, str(error)[:120]) from None

    def _damaged(self, name: str, reason: str, what: str = "run") -> UserError:
        return super()._damaged(name, reason, "ensemble" if name in (_ENSEMBLE, _CALIBRATION) else what)


def _evaluation(folder: Location) -> CheckedFolder:
    return CheckedFolder(folder, "evaluation", "run `tadvae evaluate` again")


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()
