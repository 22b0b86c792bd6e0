"""Identifier harmonisation on the real screens; skipped where the data are absent."""

import os
from itertools import pairwise
from pathlib import Path

import anndata as ad
import pytest

from tadvae.genes.harmonise import canonical_targets, harmonise
from tadvae.genes.reference import GeneReference

DATA = Path(os.environ.get("TADVAE_DATA") or Path(__file__).parents[2].parent / "shared" / "data")

pytestmark = pytest.mark.usefixtures("data")  # skips, or fails, where the data are absent

# The least share of known genes. Papalexi's panel of 299 genes holds 30 clone names of an old Ensembl
# release (RP11-34P13.3), the whole 10x panel 11,000: no reference of today lists those. The file of Kang's
# five cell types joins symbol and Ensembl id where a symbol was not unique (HLA-A_ENSG00000206503).
SCREENS = {
    "datlinger21_jurkat_crispr_tcr": 0.999,
    "kang18_pbmc_ifnb": 0.97,
    "kang18_pbmc_ifnb_5celltypes": 0.92,
    "mcfaline23_gbm_crispri": 0.99,
    "norman19_k562_crispra": 0.999,
    "papalexi21_thp1_eccite": 0.89,
}
CLONE_NAME = r"(?:[A-Z]+\d*-)?[A-Z]*\d+[A-Z]*\d*\.\d+|[\w.-]+_ENSG\d{11}"


@pytest.fixture(scope="module")
def human():
    return GeneReference.load("human")


def panel(name, reference, folder="screens"):
    path = DATA / folder / f"{name}.h5ad"
    data = ad.read_h5ad(path, backed="r")
    table = data.var
    data.file.close()
    return harmonise(table.index, reference, where=str(path), symbols=table.get("symbol"))


@pytest.mark.parametrize(("name", "share"), SCREENS.items())
def test_screens_match(human, name, share):
    frame = panel(name, human)
    assert (frame["how"] != "unknown").mean() >= share
    assert frame["gene"].is_unique
    named = frame[~frame["source"].str.fullmatch(CLONE_NAME)]
    assert (named["how"] != "unknown").mean() > 0.97


def test_every_screen_is_tested():
    assert {path.stem for path in (DATA / "screens").glob("*.h5ad")} == set(SCREENS)


@pytest.mark.parametrize(
    ("one", "other", "least"),
    [
        ("norman19_k562_crispra", "mcfaline23_gbm_crispri", 236),
        ("kang18_pbmc_ifnb", "norman19_k562_crispra", 71),
        ("kang18_pbmc_ifnb", "papalexi21_thp1_eccite", 164),
        ("kang18_pbmc_ifnb", "datlinger21_jurkat_crispr_tcr", 890),
    ],
)
def test_screens_overlap(human, one, other, least):
    shared = set(panel(one, human)["gene"]) & set(panel(other, human)["gene"])
    assert len(shared) >= least


@pytest.mark.parametrize("name", ["lung_lines_celseq2_ensembl", "lung_lines_dropseq_ensembl"])
def test_ensembl_panels_meet_symbol_panels(human, name):
    frame = panel(name, human, "cells")
    spikes = frame["source"].str.startswith("ERCC-")
    assert (frame.loc[~spikes, "how"] != "unknown").mean() > 0.999
    assert frame["symbol"].notna().mean() > 0.85
    kang = panel("kang18_pbmc_ifnb", human)
    assert kang["gene"].isin(frame["gene"]).mean() > 0.85


def test_whole_10x_panel(human):
    frame = panel("pbmc4k_10x", human, "cells")
    named = frame[~frame["source"].str.fullmatch(CLONE_NAME)]
    assert (named["how"] != "unknown").mean() > 0.97
    assert frame.set_index("source").loc["MT-ND1", "gene"] == "ENSG00000198888"


def test_targets_of_the_screens(human):
    labels = set()
    for name in ("datlinger21_jurkat_crispr_tcr", "norman19_k562_crispra", "papalexi21_thp1_eccite"):
        data = ad.read_h5ad(DATA / "screens" / f"{name}.h5ad", backed="r")
        labels |= {part for label in data.obs["condition"].unique() for part in str(label).split("+")}
        data.file.close()
    names = sorted(labels)
    genes = canonical_targets(names, human)
    assert {name for name, gene in zip(names, genes, strict=True) if gene is None} == {"control", "TCR"}
    known = sorted(gene for gene in genes if gene)
    assert all(a != b for a, b in pairwise(known))
