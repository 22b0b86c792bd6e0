"""Effects in another context: a known drug in another cell type, and a cell type that is new.

    python benchmarks/contexts.py [--json FILE] [--only drugs|types] [--study tahoe] [--seed 1]

Compares baselines with the regression of mean effects alone, with and without its contexts part; all are
fitted to the training means only. Drugs: four cell types of the NeurIPS 2023 signatures (or six lines of
Tahoe, on the genes that all of them have), five folds over the drugs of one type; the other types are in
training. Types: IFN-beta in five types of blood cells, one of
them held out with all its perturbed cells; its control cells are given. The data folder is the environment
variable TADVAE_DATA, or ../shared/data next to the repository.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np

from tadvae.cells.normalize import normalize
from tadvae.effects.conditions import Conditions
from tadvae.effects.model import EffectModel, EffectsConfig
from tadvae.effects.stage import Observed
from tadvae.evaluation.baselines import Array, Profiles, TrainingMean
from tadvae.evaluation.bootstrap import bootstrap_mean, paired_bootstrap_difference
from tadvae.evaluation.context_baselines import ContextKernel, ContextRidge
from tadvae.evaluation.latent_additive import LatentAdditive
from tadvae.evaluation.metrics import score_profiles

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = Path(os.environ.get("TADVAE_DATA", DEFAULT))
TYPES = {
    "neurips2023": ("b", "myeloid", "nk", "t"),
    "tahoe": ("a498", "hct15", "lovo", "miapaca_2", "nci_h23", "snu_423"),
}
FOLDS = 5
MODELS = {"regression": True, "regression, no contexts part": False}

Scores = dict[str, dict[str, list[float]]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--only", choices=["drugs", "types"])
    parser.add_argument("--study", choices=list(TYPES), default="neurips2023")
    parser.add_argument("--seed", type=int, default=0, help="of the folds over drugs")
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"{DATA}: no such folder; set TADVAE_DATA to the data folder.", file=sys.stderr)
        return 2
    about = {"script": "contexts.py", "study": options.study, "folds": FOLDS, "seed": options.seed}
    result: dict[str, Any] = {"about": about}
    if options.only != "drugs":
        result["types"] = summary(unseen_types(), "context_kernel")
    if options.only != "types":
        for kind, scores in known_drugs(options.study, options.seed).items():
            result[f"drugs, {kind}"] = summary(scores, "context_ridge")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def summary(scores: Scores, reference: str) -> dict[str, Any]:
    """Means, and paired differences to the reference, with 95% bootstrap intervals; printed, too."""
    result: dict[str, Any] = {}
    for method, metrics in scores.items():
        result[method] = {}
        for metric, values in metrics.items():
            found = np.array(values)
            minus = paired_bootstrap_difference(found, np.array(scores[reference][metric]))
            result[method][metric] = bootstrap_mean(found)._asdict() | {
                f"minus_{reference}": minus._asdict(),
                "values": [round(value, 4) for value in values],
            }
            print(
                f"{method:<30}{metric:<15}{found.mean():9.4f}  minus {reference} {minus.mean:+.4f} "
                f"[{minus.low:+.4f}, {minus.high:+.4f}]"
                + (f"  {np.round(found, 3).tolist()}" if len(found) < 10 else ""),
                flush=True,
            )
    return result


def add(scores: Scores, method: str, predicted: Array, true: Array, control: Array) -> None:
    found = score_profiles(control + predicted, control + true, control)
    for metric in ("pearson_delta", "l2"):
        scores.setdefault(method, {}).setdefault(metric, []).extend(found[metric].tolist())


def known_drugs(study: str, seed: int) -> dict[str, Scores]:
    """Scores over drugs, by cell type."""
    frames = {}
    for kind in TYPES[study]:
        data = anndata.read_h5ad(DATA / "signatures" / f"{study}_{kind}.h5ad")
        frames[kind] = data.to_df().set_axis(data.obs["drug"].astype(str)).astype(np.float64)
    drugs = sorted(set.intersection(*(set(frame.index) for frame in frames.values())))
    genes = sorted(set.intersection(*(set(frame.columns) for frame in frames.values())))
    effects = {kind: frame.loc[drugs, genes].to_numpy() for kind, frame in frames.items()}
    zero = np.zeros(len(genes))
    result: dict[str, Scores] = {}
    types = TYPES[study]
    for t, kind in enumerate(types):
        scores = result.setdefault(kind, {})
        for test in np.array_split(np.random.default_rng(seed).permutation(len(drugs)), FOLDS):
            test = np.sort(test)
            train = np.setdiff1d(np.arange(len(drugs)), test)
            rows = {o: train if o == kind else np.arange(len(drugs)) for o in types}
            parts = {
                o: Profiles(zero, [(drugs[i],) for i in rows[o]], effects[o][rows[o]], genes) for o in types
            }
            here = parts.pop(kind)
            profiles = Profiles(
                here.control, here.targets, here.means, here.genes, elsewhere=list(parts.values())
            )
            asked = [(drugs[i],) for i in test]
            for baseline in (TrainingMean, ContextRidge):
                predicted = baseline().fit(profiles).predict(asked)
                add(scores, baseline.name, predicted, effects[kind][test], zero)
            places = [(o, o) for o, name in enumerate(types) for _ in rows[name]]
            observed = Observed(
                Conditions.of(places, [[(int(i), 0)] for o in types for i in rows[o]], len(drugs), [1], {}),
                [effects[o][i] for o in types for i in rows[o]],
                np.ones(len(places)),
                {o: np.arange(len(genes)) for o in range(len(types))},
                dict.fromkeys(range(len(types))),
            )
            for name, contexts in MODELS.items():
                model = EffectModel.fit(observed, [1], {}, EffectsConfig(contexts=contexts))
                predicted = model.predict(t, t, [[(int(i), 0)] for i in test], np.arange(len(genes)))
                add(scores, name, predicted, effects[kind][test], zero)
        print(kind)
        summary(scores, "context_ridge")
    return result


def unseen_types() -> Scores:
    """Scores over cell types."""
    data = anndata.read_h5ad(DATA / "screens" / "kang18_pbmc_ifnb_5celltypes.h5ad")
    counts = data.X.tocsr()
    counts.data = normalize(
        counts.data, counts.indices, counts.indptr, np.asarray(counts.sum(axis=1)).ravel(), "cp10k"
    ).astype(np.float64)
    types = sorted(data.obs["cell_type"].unique())
    control = (data.obs["condition"] == "control").to_numpy()
    cells = {
        (kind, c): counts[((data.obs["cell_type"] == kind).to_numpy()) & (control == c)].toarray()
        for kind in types
        for c in (True, False)
    }
    before = np.stack([cells[kind, True].mean(axis=0) for kind in types])
    effects = np.stack([cells[kind, False].mean(axis=0) for kind in types]) - before
    genes = data.var_names.tolist()
    scores: Scores = {}
    for held in range(len(types)):
        train = [i for i in range(len(types)) if i != held]
        asked: list[tuple[str, ...]] = [("IFNB",)]
        other = [Profiles(before[i], asked, (before[i] + effects[i])[None], genes) for i in train]
        mean = before[held] + effects[train].mean(axis=0)
        profiles = Profiles(before[held], asked, mean[None], genes, elsewhere=other, new_context=True)
        for baseline in (TrainingMean, LatentAdditive, ContextKernel):
            predicted = baseline().fit(profiles).predict(asked) - before[held]
            add(scores, baseline.name, predicted, effects[held][None], before[held])
        for name, contexts in MODELS.items():
            observed = kang_observed(cells, types, train, before, effects)
            n_controls = {i: len(cells[types[i], True]) for i in train}
            model = EffectModel.fit(observed, [1], n_controls, EffectsConfig(contexts=contexts))
            predicted = model.predict(0, -1, [[(0, 0)]], np.arange(len(genes)), before[held])
            add(scores, name, predicted, effects[held][None], before[held])
    return scores


def kang_observed(
    cells: dict[tuple[str, bool], Array],
    types: Sequence[str],
    train: list[int],
    before: Array,
    effects: Array,
) -> Observed:
    squares = sum(((cells[types[i], True] - before[i]) ** 2).sum(axis=0) for i in train)
    freedom = sum(len(cells[types[i], True]) - 1 for i in train)
    n_controls = {i: len(cells[types[i], True]) for i in train}
    return Observed(
        Conditions.of([(0, i) for i in train], [[(0, 0)]] * len(train), 1, [1], n_controls),
        [effects[i] for i in train],
        np.array([len(cells[types[i], False]) for i in train]),
        {0: np.arange(effects.shape[1])},
        {0: squares / freedom},
        {i: before[i] for i in train},
    )


if __name__ == "__main__":
    sys.exit(main())
