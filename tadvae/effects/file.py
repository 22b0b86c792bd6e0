"""Saving the regression of mean effects as one safetensors file of a model folder."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tadvae.base.documents import parse_json
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
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
        data = place.read_bytes()
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
