"""The attention core inside the model: every strategy trains, is saved, and explains itself."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from tadvae.base.errors import UserError
from tadvae.cells.ragged import Cells
from tadvae.data.batches import Batch
from tadvae.model.encode import contributions, project
from tadvae.model.new_cells import NewCells, cells_of
from tadvae.model.tadvae import TADVAE
from tadvae.nn.causal import CausalConfig
from tadvae.nn.decoder import DecoderConfig
from tadvae.nn.losses import LossConfig
from tadvae.nn.network import ModelConfig, TADVAEModule
from tadvae.settings.experiment import ExperimentConfig

PATHWAY = {"d_embed": 8, "n_heads": 2, "pathway_init": "learned"}
SETTINGS = {
    "hard": {"masking": "hard"},
    "soft": {"masking": "soft", "candidates": 3},
    "soft_log": {"masking": "soft_log", "candidates": "all", "value_mode": "film"},
    "none": {"masking": "none", "value_mode": "bins"},
    "linear": {"masking": "linear", "value_mode": "bins"},
    "linear, plain": {"masking": "linear"},
    "linear, leaking": {"masking": "linear", "leak": 0.2},
    "members": {"masking": "members"},
    "agreement": {"masking": "agreement"},
    "hard, all tokens": {"masking": "hard", "tokens": "all", "value_mode": "film"},
}
ENCODERS = ["none", "full", "inducing"]
WITHOUT_TOKENS = {"linear", "linear, plain", "linear, leaking", "agreement"}
GRID = [
    (name, kind) for name in SETTINGS for kind in ENCODERS if kind == "none" or name not in WITHOUT_TOKENS
]


def config_of(pathway, encoder="none"):
    return ModelConfig(
        pathway=PATHWAY | pathway,
        encoder={"kind": encoder, "n_layers": 1, "n_inducing": 3},
        causal=CausalConfig(n_factors=4, hidden=6),
        decoder=DecoderConfig(d_gene=5, hidden=6),
    )


def build(vocabulary, pathway, encoder="none"):
    torch.manual_seed(0)
    return TADVAEModule(config_of(pathway, encoder), LossConfig(), vocabulary)


def step(module, batch, optimizer):
    optimizer.zero_grad(set_to_none=True)
    loss, _ = module(batch, 9.0, torch.Generator().manual_seed(1))
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize(("name", "encoder"), GRID)
def test_every_strategy_trains(small_vocabulary, small_batch, pack_small, name, encoder):
    module, batch = build(small_vocabulary, SETTINGS[name], encoder), pack_small(small_batch, torch.float32)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = [step(module, batch, optimizer) for _ in range(15)]
    assert losses[-1] < losses[0]
    for parameter_name, parameter in module.pathway.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize(("name", "encoder"), GRID)
@pytest.mark.parametrize("dataset", [0, 1])
def test_no_gene_outside_the_panel_enters(small_vocabulary, small_batch, pack_small, name, encoder, dataset):
    """Whatever unmeasured genes' parameters are, the activities are the same to the last bit."""
    module = build(small_vocabulary, SETTINGS[name], encoder)
    batch = pack_small(Batch([bag for bag in small_batch.bags if bag.dataset == dataset]), torch.float32)
    outside = torch.ones(small_vocabulary.n_genes, dtype=torch.bool)
    outside[small_vocabulary.datasets[dataset].genes] = False
    activity = module.pathway(batch.cells)
    activity.sum().backward()
    layer = module.pathway
    by_gene = {"gene": outside} | dict.fromkeys(("weight", "mask"), outside[layer.edges.gene])
    if layer.config.leak:
        by_gene["weight"] = outside
    checked = 0
    for parameter_name, parameter in layer.named_parameters():
        if parameter_name in by_gene:
            rows = by_gene[parameter_name]
            assert not parameter.grad[rows].any()
            with torch.no_grad():
                parameter[rows] = 1e6
            checked += 1
    assert checked or name == "agreement"  # whose logits are no parameters
    layer.edges.logit[outside[layer.edges.gene]] = 40.0
    assert torch.equal(layer(batch.cells), activity)


def screen(vocabulary, panel, seed=0):
    rng = np.random.default_rng(seed)
    genes = vocabulary.genes["gene"].to_numpy()[panel]
    counts = rng.poisson(1.5, size=(9, len(panel))).astype(np.float32)
    counts[3] = 0
    counts[3, 0] = 5
    return ad.AnnData(
        counts, obs=pd.DataFrame(index=[f"c{i}" for i in range(9)]), var=pd.DataFrame(index=genes)
    )


def door(vocabulary, pathway, encoder="none"):
    vocabulary = replace(vocabulary, reference="own")
    module = build(vocabulary, pathway, encoder)
    with torch.no_grad():
        module.pathway.bias.normal_()
    return TADVAE(module, vocabulary, ExperimentConfig(model=config_of(pathway, encoder)))


@pytest.mark.parametrize(("name", "encoder"), GRID)
def test_contributions_sum_to_the_activity(small_vocabulary, name, encoder):
    model = door(small_vocabulary, SETTINGS[name], encoder)
    adata = screen(small_vocabulary, [0, 1, 2, 4, 5, 6, 7, 9, 11])
    activity = model.activities(adata)
    for p in np.flatnonzero(adata.uns["tadvae"]["available"]):
        parts = model.contributions(adata, activity.columns[p])
        bias = model.module.pathway.bias[p].item()
        np.testing.assert_allclose(parts.sum(axis=1) + bias, activity.iloc[:, p], rtol=1e-4, atol=1e-5)
        assert set(parts.columns) <= set(adata.var_names)


@pytest.mark.parametrize("n", [0, 1, 3, 30])
@pytest.mark.parametrize("name", ["members", "agreement", "linear, plain", "linear, leaking"])
def test_smoothed_activities_and_contributions(small_vocabulary, name, n):
    """``x̃ = m + (x − m) AᵀA``, less its mean over genes, in float64, gene weights from cells of one gene."""
    model = door(small_vocabulary, SETTINGS[name])
    adata = screen(small_vocabulary, [0, 1, 2, 4, 5, 6, 7, 9, 11])
    got = model.activities(adata, smooth=n)
    cells = cells_of(adata, model.vocabulary, model.config.preprocess, layer=None, values="counts")
    X = cells.cells.dense(cells.genes).astype(np.float64)
    if n:
        mean = X.mean(0)
        axes = np.linalg.svd(X - mean, full_matrices=False)[2][:n]
        X = mean + (X - mean) @ axes.T @ axes
        X -= X.mean(1, keepdims=True)
    for p in np.flatnonzero(cells.available):
        parts = model.contributions(adata, got.columns[p], smooth=n)
        column = [cells.names.index(gene) for gene in parts]
        genes = cells.genes[column]
        one = np.eye(len(genes), dtype=np.float32)
        alone = Cells(np.tile(genes, len(genes)), one.ravel(), np.arange(len(genes) + 1) * len(genes), one[0])
        weight = np.diag(contributions(model.module, replace(cells, cells=alone), p, genes))
        np.testing.assert_allclose(parts, weight * X[:, column], atol=1e-5)
        bias = model.module.pathway.bias[p].item()
        np.testing.assert_allclose(got.iloc[:, p], (weight * X[:, column]).sum(1) + bias, atol=1e-5)


def test_only_linear_layers_are_smoothed(small_vocabulary):
    model = door(small_vocabulary, SETTINGS["hard"])
    adata = screen(small_vocabulary, [0, 1, 4, 5, 7])
    assert model.activities(adata).notna().any(axis=None)
    assert adata.uns["tadvae"]["smoothed_axes"] == 0
    with pytest.raises(UserError, match=r"smooth=3: .* masking 'hard' of this model is not linear"):
        model.activities(adata, smooth=3)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("shape", [(9, 20), (20, 9)])
def test_axes_of_sparse_cells_are_those_of_dense_ones(shape, n):
    X = np.random.default_rng(n).poisson(0.7, shape) * 1.0
    counts, genes = sparse.csr_matrix(X.astype(np.float32)), np.arange(shape[1]) + 3
    cells = Cells(counts.indices.astype(np.int64) + 3, counts.data, counts.indptr, np.ones(len(X)))
    found = project(NewCells(cells, genes, np.ones(1, bool), len(genes), []), n)
    mean = X.mean(0)
    axes = np.linalg.svd(X - mean)[2][:n]
    expected = mean + (X - mean) @ axes.T @ axes
    expected -= expected.mean(1, keepdims=True)
    np.testing.assert_allclose(found.mean + found.scores @ found.axes, expected, atol=1e-6)


@pytest.mark.parametrize(("name", "encoder"), GRID)
def test_a_model_survives_its_folder(small_vocabulary, tmp_path, name, encoder):
    model, adata = door(small_vocabulary, SETTINGS[name], encoder), screen(small_vocabulary, [0, 1, 4, 5, 7])
    model.save_pretrained(tmp_path / "model")
    again = TADVAE.from_pretrained(tmp_path / "model")
    pd.testing.assert_frame_equal(again.activities(adata), model.activities(adata))


def vectors(path, names, d=8, seed=5):
    rows = np.random.default_rng(seed).normal(size=(len(names), d)).round(4)
    path.write_text(
        "\n".join("\t".join([name, *map(str, row)]) for name, row in zip(names, rows, strict=True))
    )
    return torch.from_numpy(rows.astype(np.float32))


@pytest.mark.parametrize("use", ["warm", "frozen"])
def test_given_gene_vectors(small_vocabulary, small_batch, pack_small, tmp_path, use):
    """Warm ones move, frozen ones stay; genes without one learn; the model needs no file afterwards."""
    file = tmp_path / "genes.tsv"
    rows = vectors(file, ["G0", "G5", "G8"])
    vocabulary = replace(small_vocabulary, reference="own")
    pathway = {"masking": "members", "gene_vectors": str(file), "gene_vectors_use": use}
    pathway["pathway_init"] = "members"
    model = door(vocabulary, pathway)
    module, given = model.module, [0, 5, 8]
    table = module.pathway.embedding().detach().clone()
    torch.testing.assert_close(table[given], rows)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.1)
    batch = pack_small(small_batch, torch.float32)
    for _ in range(3):
        step(module, batch, optimizer)
    moved = (module.pathway.embedding() != table).any(1)
    assert moved[given].any() == (use == "warm")
    assert moved[[1, 2, 4, 6, 7, 9, 10]].all()

    adata = screen(vocabulary, [0, 1, 4, 5, 7])
    expected = model.activities(adata)
    model.save_pretrained(tmp_path / "model")
    file.unlink()
    pd.testing.assert_frame_equal(TADVAE.from_pretrained(tmp_path / "model").activities(adata), expected)
    with pytest.raises(UserError, match="no such file"):
        build(vocabulary, pathway)


def test_given_pathway_vectors(small_vocabulary, small_batch, pack_small, tmp_path):
    file = tmp_path / "text.tsv"
    rows = vectors(file, ["P:0", "pathway 3"], d=20)
    assert rows.shape == (2, 20)
    pathway = {"masking": "members", "pathway_init": "text", "pathway_vectors": str(file)}
    model = door(small_vocabulary, pathway)
    layer = model.module.pathway
    assert layer.text.any(1).tolist() == [True, False, False, True, False, False]
    before = layer.text.clone()
    optimizer = torch.optim.Adam(model.module.parameters(), lr=1e-2)
    for _ in range(2):
        step(model.module, pack_small(small_batch, torch.float32), optimizer)
    assert torch.equal(layer.text, before)
    assert layer.w_text.weight.grad.any()
    file.unlink()
    model.save_pretrained(tmp_path / "model")
    adata = screen(small_vocabulary, [0, 1, 4, 5, 7])
    again = TADVAE.from_pretrained(tmp_path / "model")
    pd.testing.assert_frame_equal(again.activities(adata), model.activities(adata))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo's own
@pytest.mark.parametrize(("name", "encoder"), [("hard", "none"), ("soft_log", "full"), ("none", "none")])
def test_torch_compile_leaves_the_layer_alone(small_vocabulary, small_batch, pack_small, name, encoder):
    module, batch = build(small_vocabulary, SETTINGS[name], encoder), pack_small(small_batch, torch.float32)
    expected, _ = module(batch, 9.0, None)
    compiled = torch.compile(module.pathway, backend="eager")
    torch.testing.assert_close(compiled(batch.cells), module.pathway(batch.cells), rtol=0, atol=0)
    compiled(batch.cells).sum().backward()
    assert expected.isfinite()
    torch._dynamo.reset()
