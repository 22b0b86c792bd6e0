"""The spec that `tadvae init` writes for every real file, and what it says of some."""

import pytest

from tadvae.draft_spec.dataset import Given
from tadvae.draft_spec.draft import draft_spec
from tadvae.store.spec import load_spec_text

SAYS = {
    "datlinger21_jurkat_crispr_tcr": ("condition", "control", "+", None, "CRISPRko"),
    "kang18_pbmc_ifnb": ("condition", "control", None, None, "unspecified"),  # no control cells of CD8T
    "kang18_pbmc_ifnb_5celltypes": ("condition", "control", None, "cell_type", "unspecified"),
    "mcfaline23_gbm_crispri": ("condition", "control", None, "cell_type", "CRISPRi"),
    "norman19_k562_crispra": ("condition", "control", "+", "cell_type", "CRISPRa"),
    "papalexi21_thp1_eccite": ("condition", "control", None, None, "CRISPRko"),
    "carpool23_thp1_cas13d_means": ("perturbation", "control", "+", "cell_type", "Cas13d"),
    "neurips2023_b": ("drug", [], None, "context", "drug"),
    "norman19_k562_lfc": ("perturbation", [], "+", "cell_type", "unspecified"),
}


@pytest.mark.parametrize("name", SAYS)
def test_what_a_file_says(data, name):
    path = next(data.rglob(f"{name}.h5ad"))
    text = draft_spec([str(path)], data, Given())  # plans the conversion too
    (dataset,) = load_spec_text(text, name, data).datasets
    found = dataset.perturbation
    says = (found.column, found.control, found.separator, dataset.context.column, dataset.modality)
    assert says == SAYS[name]
    assert dataset.kind == {"profiles": "profiles", "signatures": "signatures"}.get(path.parent.name, "cells")


@pytest.mark.slow
def test_one_spec_of_all_files(data):
    files = sorted(str(path) for path in data.rglob("*.h5ad"))
    spec = load_spec_text(draft_spec(files, data, Given()), "all", data)
    assert len(spec.datasets) == len(files) >= 20
    atlases = {each.name for each in spec.datasets if each.perturbation is None}
    assert atlases == {"lung_lines_celseq2_ensembl", "lung_lines_dropseq_ensembl", "pbmc4k_10x"}
