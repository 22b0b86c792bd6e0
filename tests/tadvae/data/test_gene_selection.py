"""Which genes may be tokens."""

import numpy as np
import pytest

from tadvae.base.errors import UserError
from tadvae.data.gene_selection import _protein_coding, selected_genes
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training.prepare import prepare_training


def prepared(store, simulated, *settings):
    files = [f"pathways.file={simulated.folder / 'pathways.gmt'}", "effects.weight=0"]
    return prepare_training(store, ExperimentConfig.load(None, [*files, *settings]))


def test_a_file_of_genes_and_the_targets(simulated, convert_here, tmp_path):
    store = convert_here(simulated.spec)
    keys = store.genes["gene"].tolist()
    (tmp_path / "genes.txt").write_text("\n".join([*keys[::2], "NOT_A_GENE", ""]) + "\n")
    vocabulary = prepared(store, simulated, f"preprocess.genes={tmp_path / 'genes.txt'}").vocabulary
    everything = prepared(store, simulated).vocabulary
    allowed = {*range(0, len(keys), 2), *(t.gene for t in vocabulary.targets)}
    for chosen, full in zip(vocabulary.datasets, everything.datasets, strict=True):
        assert chosen.genes.tolist() == [g for g in full.genes.tolist() if g in allowed]
        assert 0 < len(chosen.genes) < len(full.genes)


def test_bad_input(simulated, convert_here, tmp_path):
    store = convert_here(simulated.spec)
    with pytest.raises(UserError, match=r"gone.txt cannot be read \(FileNotFoundError\)"):
        selected_genes(store, str(tmp_path / "gone.txt"))
    (tmp_path / "other.txt").write_text("ENSG00000187608\n")
    with pytest.raises(UserError, match=r"no gene of .*other.txt is in the store"):
        selected_genes(store, str(tmp_path / "other.txt"))
    if store.reference != "human":
        with pytest.raises(UserError, match="protein_coding needs the human gene reference"):
            selected_genes(store, "protein_coding")
    assert selected_genes(store, "all").all()


def test_protein_coding_genes_are_about_twenty_thousand():
    keys = _protein_coding()
    ids = {key for key in keys if key.startswith("ENSG")}
    assert 19_000 < len(ids) < 21_000
    assert np.isin(["ENSG00000187608", "ISG15", "KLF1"], keys).all()
    assert not np.isin(["ENSG00000229807", "XIST", "MALAT1"], keys).any()
