"""Saving the regression of mean effects as one safetensors file of a model folder."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tadvae.base.documents import parse_json
from tadvae.base.errors import UserError, require
from tadvae.base.filesystem import Location
from tadvae.data.vocabulary import model_files
from tadvae.effects.conditions import Conditions
from tadvae.effects.model import EffectModel, Stage
from tadvae.effects.regression import Fitted, Regression

EFFECTS = "effects.safetensors"
STAGES = ("singles", "combinations")


def save_effects(model: EffectModel, folder: Location) -> None:
    """Write :data:`EFFECTS` atomically; weights are stored in single precision."""
    arrays: dict[str, np.ndarray] = {"spread": model.spread}
    about: dict[str, Any] = {
        "n_targets": model.n_targets,
        "signs": model.signs,
        "n_controls": {str(row): count for row, count in model.n_controls.items()},
    }
    for name in STAGES:
        stage: Stage | None = getattr(model, name)
        about[name] = None if stage is None else [len(regression.blocks) for regression in stage.strata]
        if stage is None:
            continue
        conditions = stage.conditions
        for part in ("dataset", "context", "targets", "n_controls"):
            arrays[f"{name}.{part}"] = getattr(conditions, part)
        for s, regression in enumerate(stage.strata):
            key = f"{name}.{s}"
            arrays[f"{key}.variances"], arrays[f"{key}.own"] = regression.variances, regression.own
            arrays[f"{key}.scalars"] = np.array([regression.noise, regression.scale])
            for b, block in enumerate(regression.blocks):
                arrays[f"{key}.{b}.genes"], arrays[f"{key}.{b}.rows"] = block.genes, block.rows
                arrays[f"{key}.{b}.weights"] = block.weights.astype(np.float32)
    for i, total in enumerate(model.sums):
        arrays[f"sum.{i}"] = total.astype(np.float32)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with (folder / EFFECTS).replacing() as partial:
        partial.write_bytes(save(arrays, metadata={"effects": json.dumps(about)}))


def load_effects(folder: Location, genes: Mapping[int, np.ndarray]) -> EffectModel:
    """Inverse of :func:`save_effects`.

    Parameters
    ----------
    genes
        Sorted vocabulary indices of the genes of each dataset.

    Raises
    ------
    UserError
        If the file is missing or damaged.
    """
    place = folder / EFFECTS
    try:
        data = model_files(folder).read(EFFECTS)
        arrays = load(data)
        length = int.from_bytes(data[:8], "little")
        about = parse_json(parse_json(data[8 : 8 + length])["__metadata__"]["effects"])
        model = EffectModel(
            n_targets=about["n_targets"],
            signs=about["signs"],
            n_controls={int(row): count for row, count in about["n_controls"].items()},
            genes=genes,
            sums=[arrays[f"sum.{i}"].astype(np.float64) for i in range(len(arrays["spread"]))],
            spread=arrays["spread"],
        )
        for name in STAGES:
            if about[name] is not None:
                setattr(model, name, _stage(arrays, name, about[name]))
        _check(model)
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{place}: missing or damaged ({type(error).__name__}: {str(error)[:120]}); copy the model "
            "folder again from its run."
        ) from None
    return model


def _stage(arrays: Mapping[str, np.ndarray], name: str, n_blocks: list[int]) -> Stage:
    conditions = Conditions(
        *(arrays[f"{name}.{part}"] for part in ("dataset", "context", "targets", "n_controls"))
    )
    strata = []
    for s, n in enumerate(n_blocks):
        key = f"{name}.{s}"
        noise, scale = arrays[f"{key}.scalars"].tolist()
        blocks = [
            Fitted(
                arrays[f"{key}.{b}.genes"],
                arrays[f"{key}.{b}.rows"],
                arrays[f"{key}.{b}.weights"].astype(np.float64),
            )
            for b in range(n)
        ]
        strata.append(Regression(arrays[f"{key}.variances"], arrays[f"{key}.own"], noise, scale, blocks))
    return Stage(conditions, strata)


def _check(model: EffectModel) -> None:
    """Raise a ValueError if what was read does not fit together."""
    require(isinstance(model.n_targets, int) and model.n_targets >= 0, "no number of targets")
    require(all(isinstance(sign, int) and abs(sign) <= 1 for sign in model.signs), "a sign is no sign")
    require(all(isinstance(n, int) and n >= 0 for n in model.n_controls.values()), "no number of controls")
    n_combinations = len(model.combinations.conditions) if model.combinations else 0
    require(len(model.sums) == n_combinations, "other sums than combinations")
    require(_finite(model.spread, *model.sums), "a sum is not finite")
    for stage in (model.singles, model.combinations):
        if stage is not None:
            _check_stage(stage, model)
    if model.combinations is not None:
        datasets = model.combinations.conditions.dataset.tolist()
        fits = all(len(s) == len(model.genes[d]) for s, d in zip(model.sums, datasets, strict=True))
        require(fits, "a sum is not over the genes of its dataset")


def _check_stage(stage: Stage, model: EffectModel) -> None:
    conditions = stage.conditions
    n = len(conditions)
    columns = (conditions.dataset, conditions.context, conditions.n_controls)
    require(all(column.shape == (n,) for column in columns), "conditions of unequal length")
    require(conditions.targets.shape == (n, model.n_targets), "conditions over other targets")
    require(
        all(each.dtype.kind == "i" for each in (*columns[:2], conditions.targets)),
        "conditions are no indices",
    )
    require(np.isin(conditions.dataset, list(model.genes)).all(), "a condition has no dataset")
    require((np.abs(conditions.targets) <= 1).all() and (conditions.n_controls >= 1).all(), "no conditions")
    for regression in stage.strata:
        require(
            _finite(regression.variances, regression.own, np.array([regression.noise, regression.scale])),
            "a variance is not finite",
        )
        for block in regression.blocks:
            genes, rows = block.genes, block.rows
            require(genes.dtype.kind == rows.dtype.kind == "i", "a block has no indices")
            require((np.diff(genes) > 0).all() and (genes[:1] >= 0).all(), "genes of a block are not sorted")
            require(((rows >= 0) & (rows < n)).all(), "rows of a block are out of range")
            require(
                block.weights.shape == (len(rows), len(genes)), "weights of another shape than their block"
            )
            require(_finite(block.weights), "a weight is not finite")


def _finite(*arrays: np.ndarray) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)
