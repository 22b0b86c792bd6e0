"""Nothing held out reaches training, for every kind of split; planted leaks are refused."""

import copy
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from scipy import sparse
from small_screens import SPLITS, small_config

from tadvae.data.splits import TEST, TRAIN, held_out_rows
from tadvae.data.vocabulary import Vocabulary
from tadvae.evaluation import questions
from tadvae.evaluation.answers import answer
from tadvae.evaluation.baselines import fit_all
from tadvae.evaluation.evaluate import evaluate
from tadvae.evaluation.leaks import check_leaks
from tadvae.evaluation.metrics import responsive_genes
from tadvae.training.fit import fit

pytestmark = pytest.mark.slow


def spoiled(folder: Path, out: Path, cells: dict[str, set[str]]) -> Path:
    """The screens with garbage in the given cells: other counts in every gene, the panels as they were."""
    rng = np.random.default_rng(0)
    out.mkdir()
    for name, ids in cells.items():
        adata = ad.read_h5ad(folder / f"{name}.h5ad")
        X = adata.X.toarray()
        rows = adata.obs_names.isin(ids)
        assert rows.sum() == len(ids)
        X[rows] = rng.poisson(rng.gamma(0.3, 30.0, X.shape[1]), (rows.sum(), X.shape[1])) + 1
        adata.X = sparse.csr_matrix(X)
        adata.write_h5ad(out / f"{name}.h5ad")
    for name in ("spec.yaml", "pathways.gmt"):
        (out / name).write_bytes((folder / name).read_bytes())
    return out


def held_out_cells(store, groups, config, stored_cells) -> dict[str, set[str]]:
    """Names of the held-out cells by dataset, from the shards themselves."""
    result = {}
    test = groups[groups["part"] == TEST]
    for d, entry in enumerate(store.manifest.datasets):
        labels, _ = stored_cells(store, d)
        if config.split.kind == "cells":
            held, start = np.zeros(len(labels), bool), 0
            bags = store.bags[store.bags["dataset"] == d]
            for (shard, row_group), part in bags.groupby(["shard", "row_group"], sort=True):
                n = int(part["n_cells"].sum())
                held[start : start + n] = held_out_rows(n, shard, row_group, config.split)
                start += n
        else:
            keys = test.loc[test["dataset"] == d, ["context_name", "perturbation_name"]]
            wanted = set(keys.itertuples(index=False, name=None))
            held = np.array(
                [key in wanted for key in zip(labels["context"], labels["perturbation"], strict=True)]
            )
        result[entry.name] = set(labels["cell_id"][held])
    return result


def learned(store, config) -> dict[str, np.ndarray]:
    """Everything that is derived from training rows, as arrays."""
    model, groups = fit(store, config)
    tested = questions.held_out_groups(groups, store.control)
    found = {f"weights.{k}": v.numpy() for k, v in model.module.state_dict().items()}
    vocabulary: Vocabulary = model.vocabulary
    for i, dataset in enumerate(vocabulary.datasets):
        found[f"genes.{i}"] = dataset.genes
    for i, context in enumerate(vocabulary.contexts):
        found[f"profile.{i}"] = context.profile
    found["seen"] = np.array([t.seen for t in vocabulary.targets])
    for i, dataset in enumerate(vocabulary.datasets):  # what the regression of mean effects has learned
        pairs = [[(t, dataset.modality)] for t in range(len(vocabulary.targets))]
        found[f"effects.{i}"] = model.effects.predict(i, -1, [*pairs, pairs[0] + pairs[1]], dataset.genes)
    if "dataset" in config.split.kind or "context" in config.split.kind or config.split.test:
        return found  # baselines start from the controls of the held-out context
    for question in questions.ask(store, groups, tested, vocabulary, config.split):
        where = f"{question.place}"
        found[f"control.{where}"] = question.control
        found[f"responsive.{where}"] = responsive_genes(question.profiles.means - question.control)
        for name, baseline in fit_all(question.profiles).items():
            found[f"{name}.{where}"] = baseline.predict(question.targets)
        found[f"model.{where}"] = answer(store, model, question).mean
    return found


@pytest.mark.parametrize("kind", SPLITS)
def test_garbage_in_held_out_rows_changes_nothing_that_was_learned(
    kind, small_folder, small_store, convert_here, stored_cells, tmp_path
):
    settings, _ = SPLITS[kind]
    config = small_config(small_folder, *settings, "preprocess.n_top_genes=20")
    before = learned(small_store, config)
    groups = fit(
        small_store, config.model_copy(update={"train": config.train.model_copy(update={"epochs": 1})})
    )[1]
    cells = held_out_cells(small_store, groups, config, stored_cells)
    assert sum(map(len, cells.values())) > 20
    other = convert_here(spoiled(small_folder, tmp_path / "spoiled", cells) / "spec.yaml", "other")
    # the garbage is there, and would have changed the genes
    for d, ids in enumerate(cells.values()):
        assert not ids or (other.panel(d)["hvg_rank"] != small_store.panel(d)["hvg_rank"]).any()
    after = learned(other, config)
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name], err_msg=name)


def test_an_unchanged_run_passes_the_leak_check(small_run, small_store):
    model, groups = small_run
    check_leaks(small_store, groups, model)


def test_planted_leaks_are_refused(small_run, small_store, refused):
    model, groups = copy.deepcopy(small_run)
    vocabulary = model.vocabulary

    # a held-out double that was trained on: the saved split says so, the config does not
    at = groups.index[groups["part"] == TEST][0]
    moved = groups.copy()
    moved.loc[at, "part"] = TRAIN
    sentence = refused(evaluate, small_store, moved, model)
    assert "leak check" in sentence
    assert groups.loc[at, "perturbation_name"] in sentence

    # variable genes of all cells instead of the training cells
    panel = small_store.panel(0)
    genes = np.sort(
        panel.sort_values("hvg_rank")["gene_index"].to_numpy()[: len(vocabulary.datasets[0].genes)]
    )
    assert not np.array_equal(genes, vocabulary.datasets[0].genes)
    own = vocabulary.datasets[0].genes
    object.__setattr__(vocabulary.datasets[0], "genes", genes)
    assert "variable genes of dataset 'up'" in refused(check_leaks, small_store, groups, model)
    object.__setattr__(vocabulary.datasets[0], "genes", own)

    # a control profile that is not of training controls
    context = vocabulary.contexts[0]
    profile = context.profile
    object.__setattr__(context, "profile", profile + np.float32(1e-3))
    assert f"control profile of context '{context.name}'" in refused(check_leaks, small_store, groups, model)
    object.__setattr__(context, "profile", profile)
    check_leaks(small_store, groups, model)

    # a target that counts as seen
    target = vocabulary.targets[0]
    object.__setattr__(target, "seen", not target.seen)
    assert f"target '{target.name}'" in refused(check_leaks, small_store, groups, model)
    object.__setattr__(target, "seen", not target.seen)


def test_a_baseline_that_would_know_the_answer_stops(small_run, small_store):
    model, groups = small_run
    tested = groups[groups["part"] == TEST]
    everything = groups.assign(part=TRAIN)
    with pytest.raises(AssertionError, match=r"leak: held-out group .* is among the training groups"):
        list(questions.ask(small_store, everything, tested, model.vocabulary, model.config.split))
