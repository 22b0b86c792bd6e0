"""Real signatures: every file converts to the values that it holds, and a short training uses their signs."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml
from local_conversion import convert_locally

from tadvae.base.filesystem import Location
from tadvae.data.group_means import group_means
from tadvae.data.reader import CellReader
from tadvae.data.splits import SplitConfig
from tadvae.data.views import DatasetView
from tadvae.evaluation.evaluate import evaluate
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training.fit import fit

pytestmark = pytest.mark.slow

FILES = {
    "neurips2023_b": {"column": "drug"},
    "neurips2023_t": {"column": "drug"},
    "tahoe_hct15": {"column": "drug"},
    "norman19_k562_lfc": {"column": "perturbation", "separator": "+"},
}
SETTINGS = [
    "model.pathway={masking: linear}",
    "model.causal={n_factors: 4, hidden: 8}",
    "model.decoder={d_gene: 8, hidden: 8}",
    "train.epochs=1",
    "preprocess.n_top_genes=300",
    "effects={weight: 1, strata: []}",
]


def converted(paths, folder):
    datasets = []
    for path in paths:
        dataset = {"name": path.stem, "path": str(path), "kind": "signatures"}
        dataset |= {"context": {"value": path.stem}, "perturbation": FILES[path.stem]}
        datasets.append(dataset | {"modality": "CRISPRa" if "norman" in path.stem else "drug"})
    (folder / "spec.yaml").write_text(yaml.safe_dump({"datasets": datasets}))
    return convert_locally(folder / "spec.yaml", Location.of(folder / "store"))


@pytest.fixture(scope="module")
def stored(data, tmp_path_factory):
    paths = [data / "signatures" / f"{name}.h5ad" for name in FILES]
    return converted(paths, tmp_path_factory.mktemp("signatures"))


def test_every_value_is_as_in_the_file(stored, data):
    views = [DatasetView(stored.panel(i)["gene_index"].to_numpy(np.int64), "none") for i in range(len(FILES))]
    means = group_means(CellReader(stored, views, SplitConfig(kind="none")), stored.bags).mean
    for i, (name, perturbation) in enumerate(FILES.items()):
        source = ad.read_h5ad(data / "signatures" / f"{name}.h5ad")
        labels = source.obs[perturbation["column"]].astype(str)
        found = pd.DataFrame(
            {p: mean for (d, _, p), mean in means.items() if d == i}, index=stored.panel(i)["var_name"]
        ).T
        assert not found.loc[stored.control].any()
        assert len(found) == len(labels) + 1
        perturbations = stored.perturbations.set_index("targets")["name"]
        by_targets = {frozenset(targets): p for p, targets in enumerate(perturbations.index)}
        rows = [by_targets[frozenset(stored.labels[i][label])] for label in labels]
        np.testing.assert_array_equal(found.loc[rows, source.var_names], source.X)
        if "separator" not in perturbation:
            assert perturbations.iloc[rows].tolist() == labels.str.strip().tolist()


def test_a_known_drug_in_another_type(data, tmp_path):
    stored = converted([data / f"signatures/neurips2023_{name}.h5ad" for name in ("b", "t")], tmp_path)
    split = ["split.kind=single", "split.datasets=[neurips2023_t]"]
    model, groups = fit(stored, ExperimentConfig.load(None, [*SETTINGS, *split]))
    scores = evaluate(stored, groups, model).summary()
    mean = scores[scores["category"] == "all"].pivot(index="method", columns="metric", values="mean")
    assert mean.loc["tadvae", "pearson_delta"] > mean.loc["mean", "pearson_delta"] + 0.03
    assert mean.loc["tadvae", "l2"] < mean.loc["mean", "l2"]
    assert mean.loc["no_change", "l2"] > mean.loc["mean", "l2"]
    assert model.predict("ABT737", context="neurips2023_t").X.min() < -1
