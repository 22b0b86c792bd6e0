"""Model cards, and models that are pushed to a hub on this machine and loaded from it."""

import os
import subprocess
import sys
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hub_server import TOKEN, serving

from tadvae import TADVAE
from tadvae.base.errors import UserError
from tadvae.model.card import model_card
from tadvae.model.hub import upload
from tadvae.nn.network import TADVAEModule
from tadvae.settings.experiment import ExperimentConfig

SMALL = [
    "model.pathway={d_embed: 8, n_heads: 2}",
    "model.causal={n_factors: 3, hidden: 6}",
    "model.decoder={d_gene: 5, hidden: 6}",
]


@pytest.fixture
def model(small_vocabulary):
    torch.manual_seed(0)
    config = ExperimentConfig.load(None, [*SMALL, "effects.weight=0"])
    vocabulary = replace(small_vocabulary, reference="none")
    return TADVAE(TADVAEModule(config.model, config.loss, vocabulary), vocabulary, config)


def cells(genes):
    rng = np.random.default_rng(3)
    counts = rng.poisson(3.0, (5, len(genes))).astype(np.float32)
    obs = pd.DataFrame(index=[f"c{i}" for i in range(5)])
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes))


def test_a_card_says_what_the_model_is(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    card = (tmp_path / "model/README.md").read_text()
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head)["library_name"] == "tadvae"
    assert "2 datasets, 11 measured genes, 6 pathways, 3 targets seen in training" in body
    assert "| screen | cells | 8 | 4 | K562, A549 | CRISPRa, CRISPRi, ligand | 3 |" in body
    assert "Targets: G0, G9, ligand." in body
    assert "known by identity" in body
    by_gene = ExperimentConfig.load(None, [*SMALL, "model.causal.targets=gene"])
    assert "known by their gene" in model_card(model.vocabulary, by_gene)


def test_genes_that_matched_are_said(model, capsys):
    adata = cells(["G4", "G5", "G0", "G1", "G6", "unknown"])
    model.activities(adata)
    assert "5 of 6 given genes matched, of 11 that the model knows" in capsys.readouterr().err
    about = adata.uns["tadvae"]
    assert (about["genes_matched"], about["genes_given"], about["genes_of_model"]) == (5, 6, 11)
    assert f"{about['available'].sum()} of 6 pathways can be seen" not in about
    with pytest.raises(UserError, match="0 of its 2 genes are known"):
        model.latent(cells(["x", "y"]))


# The library reads HF_ENDPOINT when it is first imported, so this has processes of its own.
THERE_AND_BACK = """
import sys
from tadvae import TADVAE
print(TADVAE.from_pretrained(sys.argv[1]).push_to_hub("lab/screens"))
TADVAE.from_pretrained("hf://lab/screens").save_pretrained(sys.argv[2])
"""
REFUSED = """
import os, sys, traceback
from tadvae import TADVAE
try:
    TADVAE.from_pretrained(sys.argv[1]).push_to_hub("lab/screens")
except Exception:
    traceback.print_exc()
os.environ["HF_TOKEN"] = sys.argv[2]
TADVAE.from_pretrained("hf://lab/none")
"""


def run(code, folder, more, hub, home, token=TOKEN):
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": token}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), str(more)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_a_model_goes_to_a_hub_and_comes_back(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    with serving() as hub:
        done = run(THERE_AND_BACK, tmp_path / "model", tmp_path / "again", hub, tmp_path / "home")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{hub.url}/lab/screens/commit/")
        assert hub.private["lab/screens"] in (True, "private")
        files = {f.name: f.read_bytes() for f in (tmp_path / "model").iterdir()}
        assert hub.files["lab/screens"] == files
        assert {"README.md", "config.yaml", "vocabulary.json", "model.safetensors"} <= set(files)
        assert hub.unknown == []
        refused = run(REFUSED, tmp_path / "model", TOKEN, hub, tmp_path / "other home", token="wrong")
    given = cells(["G4", "G5", "G0", "G1", "G6"])
    pd.testing.assert_frame_equal(
        TADVAE.from_pretrained(tmp_path / "again").activities(given), model.activities(given)
    )
    assert "tadvae.base.errors.UserError: hf://lab/screens: the Hub did not do it" in refused.stderr
    assert "tadvae.base.errors.UserError: hf://lab/none: the Hub did not do it" in refused.stderr


def test_without_the_library_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'tadvae\[hub\]'"):
        upload(tmp_path, "lab/model", private=True, token=None, message="")
