"""Real screens of many labs in one store: every cell as it was, and one key for a gene of all panels."""

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import yaml

from pipelines.convert import convert
from tadvae.cells.moments import Moments
from tadvae.cells.normalize import PreprocessConfig
from tadvae.cells.variable_genes import choose_genes
from tadvae.data.decode import COLUMNS, DatasetView, decode
from tadvae.store.reader import Store

pytestmark = pytest.mark.slow

SCREEN = {"column": "condition", "control": "control"}
COMBINATIONS = {**SCREEN, "separator": "+"}
DATASETS = [
    {
        "name": "norman19",
        "path": "screens/norman19_k562_crispra.h5ad",
        "perturbation": COMBINATIONS,
        "context": {"column": "cell_type"},
        "modality": "CRISPRa",
    },
    {
        "name": "mcfaline23",
        "path": "screens/mcfaline23_gbm_crispri.h5ad",
        "perturbation": SCREEN,
        "context": {"column": "cell_type"},
        "modality": "CRISPRi",
    },
    {
        "name": "datlinger21",
        "path": "screens/datlinger21_jurkat_crispr_tcr.h5ad",
        "perturbation": COMBINATIONS,
        "context": {"value": "Jurkat"},
        "modality": {"default": "CRISPRko", "TCR": "stimulation"},
    },
    {
        "name": "papalexi21",
        "path": "screens/papalexi21_thp1_eccite.h5ad",
        "perturbation": SCREEN,
        "context": {"value": "THP1"},
        "modality": "CRISPRko",
        "batch": {"column": "bio_rep"},
        "total_counts": "cov_response_n_umis",
    },
    {
        "name": "kang18",
        "path": "screens/kang18_pbmc_ifnb.h5ad",
        "perturbation": SCREEN,
        "context": {"value": "PBMC"},
        "modality": "ligand",
    },
    {
        "name": "celseq2",
        "path": "cells/lung_lines_celseq2_ensembl.h5ad",
        "context": {"column": "cell_line_demuxlet"},
    },
    {
        "name": "dropseq",
        "path": "cells/lung_lines_dropseq_ensembl.h5ad",
        "context": {"column": "cell_line"},
    },
]
NAMES = [dataset["name"] for dataset in DATASETS]
CARPOOL = {
    "name": "carpool23",
    "path": "profiles/carpool23_thp1_cas13d_means.h5ad",
    "kind": "profiles",
    "values": "log1p",
    "perturbation": {"column": "perturbation", "control": "control", "separator": "+"},
    "context": {"column": "cell_type"},
    "modality": "Cas13d",
}


# Retired names of targets, and today's.
RENAMED = {"MARCH8": "MARCHF8", "VPRBP": "DCAF1"}
NO_GENES = {"TCR", "IFNB"}
"""Targets of a stimulation and a ligand: they keep their names."""


def official(labels):
    """Labels as the store has them: targets in order, by their symbols of today."""
    return ["+".join(sorted(RENAMED.get(name, name) for name in label.split("+"))) for label in labels]


def write_spec(folder, data, datasets, **more):
    spec = {"datasets": [{**d, "path": str(data / d["path"])} for d in datasets], **more}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return str(folder / "spec.yaml")


@pytest.fixture(scope="module")
def store(ray_cluster, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    convert(write_spec(folder, data, DATASETS), str(folder / "store"))
    return Store.open(str(folder / "store"))


@pytest.fixture(scope="module")
def sources(data):
    return {dataset["name"]: ad.read_h5ad(data / dataset["path"]) for dataset in [*DATASETS, CARPOOL]}


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_is_as_it_was(store, sources, stored_cells, name):
    d = NAMES.index(name)
    entry, source, spec = store.manifest.datasets[d], sources[name], DATASETS[d]
    cells, values = stored_cells(store, d)
    assert sorted(cells["cell_id"]) == sorted(source.obs_names)
    row = source.obs_names.get_indexer(cells["cell_id"])
    of_cell = source.obs.iloc[row]

    panel = store.panel(d)
    assert sorted(panel["source"]) == sorted(source.var_names)
    assert panel["gene_index"].is_unique
    X = source.X[row][:, source.var_names.get_indexer(panel["source"])].astype(np.float64)
    assert (values[:, panel["gene_index"]] != X).nnz == 0
    assert values.nnz == source.X.astype(bool).sum()  # so there is nothing beside the panel
    assert values.sum() == source.X.sum(dtype=np.float64)
    assert (values.data > 0).all()
    assert set(np.unique(values.indices)) <= set(panel["gene_index"])
    assert (values[:, panel["gene_index"]].getnnz(axis=0) / len(cells) == panel["detection"]).all()
    np.testing.assert_array_equal(cells["n_tokens"], np.diff(values.indptr))

    if "total_counts" in spec:
        np.testing.assert_array_equal(cells["total_counts"], of_cell[spec["total_counts"]])
    else:
        np.testing.assert_array_equal(cells["total_counts"], np.asarray(X.sum(axis=1)).ravel())
    assert entry.has_total_counts == ("total_counts" in spec)

    context = spec["context"]
    expected = context.get("value") or of_cell[context.get("column")].astype(str).to_numpy()
    assert (cells["context"] == expected).all()
    batch = of_cell[spec["batch"]["column"]].astype(str).to_numpy() if "batch" in spec else ""
    assert (cells["batch"] == batch).all()
    if "perturbation" in spec:
        assert (cells["perturbation"] == official(of_cell["condition"])).all()
    else:
        assert set(cells["perturbation"]) == {"control"}


def test_the_whole(store, sources):
    manifest = store.manifest
    assert manifest.n_cells == sum(sources[name].n_obs for name in NAMES) == 37_324
    assert [entry.n_genes for entry in manifest.datasets] == [sources[name].n_vars for name in NAMES]
    assert " ".join(manifest.contexts) == "A172 A549 H1975 H2228 H838 HCC827 Jurkat PBMC T98G THP1 U87MG k562"
    for shard in range(len(manifest.shards)):
        store.verify(shard)
    assert store.bags["n_cells"].sum() == manifest.n_cells
    assert store.bags["n_tokens"].sum() == sum(shard.tokens for shard in manifest.shards)


def test_perturbations(store):
    table = store.perturbations.set_index("name")
    assert list(table.loc["KLF1+MAP2K6", "modalities"]) == ["CRISPRa", "CRISPRa"]
    tcr = table[[("TCR" in targets) for targets in table["targets"]]]
    assert len(tcr) == 21
    for row in tcr.itertuples():
        at = list(row.targets).index("TCR")
        assert (row.modalities[at], row.signs[at], row.target_genes[at]) == ("stimulation", 0, -1)
        assert all(sign == -1 for i, sign in enumerate(row.signs) if i != at)
    # One gene, one name and one key, in screens of other modalities.
    both = store.perturbations[store.perturbations["name"] == "MAP2K3"]
    assert sorted(both["modalities"].map(list).sum()) == ["CRISPRa", "CRISPRi"]
    assert both["target_genes"].map(tuple).nunique() == 1
    genes = store.genes["symbol"].to_numpy()
    for row in store.perturbations.itertuples():
        for target, gene in zip(row.targets, row.target_genes, strict=True):
            assert (gene == -1) == (target in NO_GENES)
            assert gene == -1 or genes[gene] == target


@pytest.mark.parametrize(
    ("one", "other", "least"),
    [
        ("norman19", "mcfaline23", 236),
        ("celseq2", "kang18", 7_500),  # Ensembl ids and symbols
        ("celseq2", "dropseq", 12_000),
        ("kang18", "papalexi21", 164),
    ],
)
def test_panels_meet(store, one, other, least):
    panels = [set(store.panel(NAMES.index(name))["gene_index"]) for name in (one, other)]
    assert len(panels[0] & panels[1]) >= least


@pytest.mark.parametrize("name", ["kang18", "celseq2"])
@pytest.mark.parametrize("n_top", [50, 200, 2000])
def test_variable_genes_are_scanpys(store, sources, name, n_top):
    panel = store.panel(NAMES.index(name)).set_index("source")
    adata = normalised(sources[name], 1e4)
    sc.pp.highly_variable_genes(adata, n_top_genes=n_top, flavor="seurat")
    score = adata.var["dispersions_norm"].fillna(-np.inf)
    cutoff = score.sort_values().iloc[-n_top]
    chosen = set(panel.index[panel["hvg_rank"] < n_top])
    assert len(chosen) == n_top
    # scanpy takes all genes that tie for the last place
    assert set(score.index[score > cutoff + 1e-6]) <= chosen <= set(score.index[score >= cutoff - 1e-6])
    assert ((score >= cutoff - 1e-6).sum() - n_top) < 10


def normalised(source, scale):
    adata = ad.AnnData(source.X.astype(np.float64), obs=source.obs[[]], var=source.var[[]])
    sc.pp.normalize_total(adata, target_sum=scale)
    sc.pp.log1p(adata)
    return adata


@pytest.mark.parametrize(("method", "scale"), [("cp10k", 1e4), ("cpm", 1e6)])
def test_decoded_values_are_scanpys(store, sources, method, scale):
    d = NAMES.index("kang18")
    panel = store.panel(d)
    adata = normalised(sources["kang18"], scale)[:, panel["source"].tolist()]
    (shard,) = {bag.shard for bag in store.bags[store.bags["dataset"] == d].itertuples()}
    bags = store.bags[(store.bags["shard"] == shard) & (store.bags["row_group"] == 1)]
    table, _ = store.read_bags(shard, 1, bags.index.to_numpy(), ["cell_id", *COLUMNS])
    genes = panel["gene_index"].to_numpy()[::3]  # a view of some genes; the library size is of all
    cells = decode(table, DatasetView(genes, method), store.manifest.n_genes)
    expected = adata[table["cell_id"].to_pylist()].X[:, ::3].toarray()
    dense = np.zeros((table.num_rows, store.manifest.n_genes))
    dense[np.repeat(np.arange(len(dense)), np.diff(cells.offsets)), cells.gene_ids] = cells.values
    np.testing.assert_allclose(dense[:, genes], expected, rtol=1e-5)


def test_variable_genes_keep_the_targets(store):
    d = NAMES.index("norman19")
    panel = store.panel(d)
    measured = panel["gene_index"].to_numpy()
    targets = np.unique(np.concatenate(store.perturbations["target_genes"].to_list()))
    moments = moments_of(store, d)
    chosen = choose_genes(moments, measured, targets, PreprocessConfig(n_top_genes=50))
    assert set(measured) & set(targets) <= set(chosen)
    assert len(chosen) < len(measured)


def moments_of(store, d):
    """The moments that the panel's table was made from."""
    panel, n = store.panel(d), store.manifest.datasets[d].n_cells
    parts = [np.zeros(store.manifest.n_genes) for _ in range(3)]
    index = panel["gene_index"]
    parts[0][index] = panel["mean"] * n
    parts[1][index] = panel["variance"] * (n - 1) + panel["mean"] ** 2 * n
    parts[2][index] = panel["detection"] * n
    return Moments(n, *parts)


def test_mean_profiles(ray_cluster, data, sources, stored_cells, tmp_path):
    datasets = [CARPOOL, DATASETS[NAMES.index("papalexi21")]]
    convert(write_spec(tmp_path, data, datasets), str(tmp_path / "store"))
    store = Store.open(str(tmp_path / "store"))
    entry = store.manifest.datasets[0]
    assert (entry.kind, entry.values, entry.n_cells, entry.n_perturbations) == ("profiles", "log1p", 89, 88)
    assert (store.bags[store.bags["dataset"] == 0]["n_cells"] == 1).all()
    cells, values = stored_cells(store, 0)
    panel, source = store.panel(0), sources["carpool23"]
    X = source.to_df().loc[cells["cell_id"], panel["source"]]
    np.testing.assert_array_equal(values[:, panel["gene_index"]].toarray(), X)
    np.testing.assert_allclose(panel["mean"], np.expm1(X.astype(np.float64)).mean(), rtol=1e-6)
    assert (cells["perturbation"] == official(source.obs["perturbation"].loc[cells["cell_id"]])).all()
    table = store.perturbations[store.perturbations["name"] != "control"]
    of_carpool = table[[any(part["dataset"] == 0 for part in parts) for parts in table["n_cells"]]]
    assert len(of_carpool) == 88
    assert all(sign == -1 for signs in of_carpool["signs"] for sign in signs)
    assert store.manifest.contexts == ["THP1"]  # one line, two modalities


def test_the_organism_is_wrong(data, tmp_path, refused):
    """Symbols of mouse screens are not taken for human ones."""
    mouse = ad.read_h5ad(data / DATASETS[0]["path"])
    mouse.var_names = mouse.var_names.str.capitalize()
    mouse.write_h5ad(tmp_path / "mouse.h5ad")
    spec = write_spec(tmp_path, tmp_path, [{**DATASETS[0], "path": "mouse.h5ad"}])
    assert "mouse" in refused(convert, spec, str(tmp_path / "store"))


def test_log_values_of_a_real_screen(ray_cluster, data, tmp_path, refused):
    logged = ad.read_h5ad(data / DATASETS[0]["path"])
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    logged.write_h5ad(tmp_path / "logged.h5ad")
    spec = write_spec(tmp_path, tmp_path, [{**DATASETS[0], "path": "logged.h5ad"}])
    assert "log-transformed" in refused(convert, spec, str(tmp_path / "store"))
    assert not list(tmp_path.glob("store*"))
