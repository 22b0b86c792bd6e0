"""The model card: a README.md beside the weights that says what a model was trained on and how to use it."""

from importlib import metadata

import numpy as np
import yaml

from tadvae.base.filesystem import Location
from tadvae.data.vocabulary import Vocabulary
from tadvae.settings.experiment import ExperimentConfig

CARD = "README.md"
SHOWN_TARGETS = 200


def write_card(folder: Location, vocabulary: Vocabulary, config: ExperimentConfig) -> None:
    """Write ``README.md`` into a model's folder."""
    (folder / CARD).write_text(model_card(vocabulary, config))


def model_card(vocabulary: Vocabulary, config: ExperimentConfig) -> str:
    """The card as Markdown, with the metadata block that model hubs read.

    It has no scores: those belong to a run and its split (``tadvae evaluate``), and a model may be copied
    without them. It names no licence, since that is for the data's owner to choose.
    """
    head = {
        "library_name": "tadvae",
        "tags": ["biology", "single-cell", "perturbation", "pathways", "interpretability"],
    }
    seen = sorted(target.name for target in vocabulary.targets if target.seen)
    shown = ", ".join(seen[:SHOWN_TARGETS]) + (", …" if len(seen) > SHOWN_TARGETS else "")
    model = config.model
    available = vocabulary.available.sum(axis=1)
    rows = []
    for i, entry in enumerate(vocabulary.datasets):
        contexts = ", ".join(c.name for c in vocabulary.contexts if c.dataset == i)
        modality = ", ".join(sorted({vocabulary.modalities[m] for m in entry.target_modality.values()}))
        rows.append(
            f"| {entry.name} | {len(entry.genes):,} | {int(available[i])} | {contexts} | "
            f"{modality or 'none'} | {len(entry.target_modality)} |"
        )
    unseen = (
        "Targets are known by identity: nothing is predicted for a target that is not in the list below."
        if model.causal.targets == "identity"
        else "Targets are known by their gene: other measured genes can be asked for, with less certainty."
    )
    genes = len(np.unique(np.concatenate([entry.genes for entry in vocabulary.datasets])))
    return f"""---
{yaml.safe_dump(head, sort_keys=False)}---

# A tadvae model

Pathway activities of single cells, and predictions of what perturbations do to them.

- {len(vocabulary.datasets)} datasets, {genes:,} measured genes, \
{vocabulary.membership.n_pathways:,} pathways, {len(seen)} targets seen in training
- {model.pathway.masking} masking, {model.causal.n_factors} latent factors; all settings in `config.yaml`
- share of the regression of mean effects: {config.effects.weight:g}
- held out while training: {config.split.kind} (fold {config.split.fold} of {config.split.folds}, seed \
{config.split.seed}); seed {config.seed}
- written by tadvae {metadata.version("tadvae")}

## Use it

```python
from tadvae import TADVAE

model = TADVAE.from_pretrained("this folder")
model.activities(adata)  # raw counts; genes are matched by Ensembl id, symbol or alias
adata.obsm["X_tadvae_activity"], adata.uns["tadvae"]["pathway_names"]
model.predict("{seen[0] if seen else "TARGET"}", context="{vocabulary.contexts[0].name}", \
dataset="{vocabulary.datasets[vocabulary.contexts[0].dataset].name}")
```

## Trained on

| dataset | genes | pathways it sees | contexts | modalities | targets |
|---|---|---|---|---|---|
{chr(10).join(rows)}

Targets: {shown or "none"}.

## What it cannot do

{unseen} Other contexts need their own control cells (`predict(..., controls=...)`). Scores of predictions \
beside simple arithmetic come from `tadvae evaluate` on the model's run. Training cells are not part of this \
folder, but it holds the mean control profile of every context.
"""
