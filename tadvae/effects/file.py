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
from tadvae.effects.conditions import N_AMOUNTS, Conditions
from tadvae.effects.model import EffectModel
from tadvae.effects.new_contexts import ContextEffects
from tadvae.effects.regression import Fitted, Regression
from tadvae.effects.stage import Observed, Stage
from tadvae.effects.targets_elsewhere import Elsewhere

EFFECTS = "effects.safetensors"
STAGES = ("singles", "combinations")
COLUMNS = ("dataset", "context", "targets", "n_controls")


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
        _add_conditions(conditions, name, arrays)
        for s, regression in enumerate(stage.strata):
            key = f"{name}.{s}"
            arrays[f"{key}.variances"], arrays[f"{key}.own"] = regression.variances, regression.own
            arrays[f"{key}.scalars"] = np.array([regression.noise, regression.scale])
            for b, block in enumerate(regression.blocks):
                arrays[f"{key}.{b}.genes"], arrays[f"{key}.{b}.rows"] = block.genes, block.rows
                arrays[f"{key}.{b}.weights"] = block.weights.astype(np.float32)
    if model.similar is not None:
        arrays["similar"] = model.similar.astype(np.float32)
    if model.elsewhere is not None:
        about["elsewhere"] = True
        for part in COLUMNS:
            arrays[f"elsewhere.{part}"] = getattr(model.elsewhere.conditions, part)
        for i, effect in enumerate(model.elsewhere.effects):
            arrays[f"elsewhere.{i}"] = effect.astype(np.float32)
    about["new_contexts"] = sorted(model.new_contexts)
    for dataset, contexts in model.new_contexts.items():
        key = f"new_contexts.{dataset}"
        arrays[f"{key}.controls"] = contexts.controls.astype(np.float32)
        arrays[f"{key}.effects"] = contexts.effects.astype(np.float32)
        arrays[f"{key}.context"], arrays[f"{key}.targets"] = contexts.context, contexts.targets
        arrays[f"{key}.scales"] = contexts.scales
    if model.observed is not None:
        about |= _observed_arrays(model.observed, arrays)
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
        if "similar" in arrays:
            model.similar = arrays["similar"].astype(np.float64)
        if about.get("elsewhere"):
            conditions = Conditions(*(arrays[f"elsewhere.{part}"] for part in COLUMNS))
            effects = [arrays[f"elsewhere.{i}"].astype(np.float64) for i in range(len(conditions))]
            model.elsewhere = Elsewhere(conditions, effects)
        for dataset in about.get("new_contexts", ()):
            key = f"new_contexts.{dataset}"
            model.new_contexts[dataset] = ContextEffects(
                arrays[f"{key}.controls"].astype(np.float64),
                arrays[f"{key}.effects"].astype(np.float64),
                *(arrays[f"{key}.{part}"] for part in ("context", "targets", "scales")),
            )
        if "observed_variance" in about:
            model.observed = _observed(arrays, about, genes)
        _check(model)
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{place}: missing or damaged ({type(error).__name__}: {str(error)[:120]}); copy the model "
            "folder again from its run."
        ) from None
    return model


def _observed_arrays(observed: Observed, arrays: dict[str, np.ndarray]) -> dict[str, list[int]]:
    """Add observed effects to the arrays of a file; which datasets and contexts they have."""
    _add_conditions(observed.conditions, "observed", arrays)
    arrays["observed.n_cells"] = np.asarray(observed.n_cells, np.int64)
    for i, effect in enumerate(observed.effects):
        arrays[f"observed.{i}"] = effect.astype(np.float32)
    variances = {dataset: each for dataset, each in observed.variance.items() if each is not None}
    for dataset, variance in variances.items():
        arrays[f"observed.variance.{dataset}"] = variance.astype(np.float32)
    for row, control in observed.controls.items():
        arrays[f"observed.control.{row}"] = control.astype(np.float32)
    return {"observed_variance": sorted(variances), "observed_controls": sorted(observed.controls)}


def _observed(
    arrays: Mapping[str, np.ndarray], about: Mapping[str, Any], genes: Mapping[int, np.ndarray]
) -> Observed:
    """Inverse of :func:`_observed_arrays`."""
    conditions = _conditions(arrays, "observed")
    variance = {
        d: arrays[f"observed.variance.{d}"].astype(np.float64) if d in about["observed_variance"] else None
        for d in genes
    }
    return Observed(
        conditions,
        [arrays[f"observed.{i}"].astype(np.float64) for i in range(len(conditions))],
        arrays["observed.n_cells"],
        genes,
        variance,
        {row: arrays[f"observed.control.{row}"].astype(np.float64) for row in about["observed_controls"]},
    )


def _add_conditions(conditions: Conditions, name: str, arrays: dict[str, np.ndarray]) -> None:
    for part in COLUMNS:
        arrays[f"{name}.{part}"] = getattr(conditions, part)
    if conditions.has_amounts.any():
        arrays[f"{name}.amounts"] = conditions.amounts


def _conditions(arrays: Mapping[str, np.ndarray], name: str) -> Conditions:
    amounts = f"{name}.amounts"
    return Conditions(
        *(arrays[f"{name}.{part}"] for part in (*COLUMNS, *["amounts"][amounts not in arrays :]))
    )


def _stage(arrays: Mapping[str, np.ndarray], name: str, n_blocks: list[int]) -> Stage:
    conditions = _conditions(arrays, name)
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
    _check_contexts(model)
    if model.observed is not None:
        _check_observed(model.observed, model)
    if model.combinations is not None:
        datasets = model.combinations.conditions.dataset.tolist()
        fits = all(len(s) == len(model.genes[d]) for s, d in zip(model.sums, datasets, strict=True))
        require(fits, "a sum is not over the genes of its dataset")


def _check_contexts(model: EffectModel) -> None:
    if model.similar is not None:
        require(model.similar.shape == (model.n_targets, model.n_targets), "a similarity of other targets")
        require(_finite(model.similar), "a similarity is not finite")
    if model.elsewhere is not None:
        _check_conditions(model.elsewhere.conditions, model)
        pairs = zip(model.elsewhere.effects, model.elsewhere.conditions.dataset.tolist(), strict=True)
        require(all(e.shape == (len(model.genes[d]),) for e, d in pairs), "an effect on other genes")
        require(_finite(*model.elsewhere.effects), "an effect is not finite")
    for dataset, each in model.new_contexts.items():
        require(dataset in model.genes, "a context has no dataset")
        n, G = len(each.context), len(model.genes[dataset])
        require(each.effects.shape == (n, G) and each.controls.shape[1:] == (G,), "contexts on other genes")
        require(each.targets.shape == (n, model.n_targets), "contexts over other targets")
        require(each.context.dtype.kind == each.targets.dtype.kind == "i", "contexts are no indices")
        require(((each.context >= 0) & (each.context < len(each.controls))).all(), "no such context")
        require(each.scales.shape == (3,), "other scales")
        require(_finite(each.controls, each.effects, each.scales), "a context is not finite")


def _check_observed(observed: Observed, model: EffectModel) -> None:
    _check_conditions(observed.conditions, model)
    pairs = zip(observed.effects, observed.conditions.dataset.tolist(), strict=True)
    require(all(e.shape == (len(model.genes[d]),) for e, d in pairs), "an observed effect on other genes")
    counts = observed.n_cells
    fits = counts.shape == (len(observed.conditions),) and counts.dtype.kind == "i" and (counts >= 1).all()
    require(fits, "observed effects without numbers of cells")
    known = {d: each for d, each in observed.variance.items() if each is not None}
    require(all(v.shape == (len(model.genes[d]),) for d, v in known.items()), "a variance of other genes")
    require(all((v >= 0).all() for v in known.values()), "a negative variance")
    require(_finite(*observed.effects, *known.values(), *observed.controls.values()), "not a finite effect")


def _check_conditions(conditions: Conditions, model: EffectModel) -> None:
    n = len(conditions)
    columns = (conditions.dataset, conditions.context, conditions.n_controls)
    require(all(column.shape == (n,) for column in columns), "conditions of unequal length")
    require(conditions.targets.shape == (n, model.n_targets), "conditions over other targets")
    require(
        all(each.dtype.kind == "i" for each in (*columns[:2], conditions.targets)),
        "conditions are no indices",
    )
    require(np.isin(conditions.dataset, list(model.genes)).all(), "a condition has no dataset")
    amounts = conditions.amounts
    fits = amounts.shape == (n, N_AMOUNTS) and amounts.dtype == np.float64 and not np.isinf(amounts).any()
    require(fits, "conditions without their doses")
    require((np.abs(conditions.targets) <= 1).all() and (conditions.n_controls >= 1).all(), "no conditions")


def _check_stage(stage: Stage, model: EffectModel) -> None:
    conditions, n = stage.conditions, len(stage.conditions)
    _check_conditions(conditions, model)
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
