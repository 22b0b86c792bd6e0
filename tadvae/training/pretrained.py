"""Fine-tuning: a trained model as the start of a training on another store.

The vocabulary grows: genes, targets, contexts, datasets and modalities of the new store are added to those of
the model, whose meaning and weights stay. Pathways stay those of the model; a gene that it did not know is
added to the pathways that list it in the file of pathways (:attr:`Membership.late`).
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tadvae.base.checksums import sha256
from tadvae.base.errors import UserError
from tadvae.cells.ragged import Cells
from tadvae.data.build_vocabulary import resolver
from tadvae.data.decode import DatasetView
from tadvae.data.origin import Origin
from tadvae.data.store_of_model import StoreOfModel, places_among
from tadvae.data.vocabulary import Vocabulary
from tadvae.effects.stage import Observed
from tadvae.model.hub import HUB, download
from tadvae.model.run_folder import RunFolder
from tadvae.model.tadvae import TADVAE
from tadvae.model.weights import WEIGHTS
from tadvae.nn.growth import Kind, grow, places_of_edges
from tadvae.nn.network import TADVAEModule
from tadvae.pathways.default import packaged
from tadvae.pathways.membership import Coverage, Membership, hidden_units, membership
from tadvae.pathways.permuted import permuted_genes
from tadvae.pathways.read import read_pathways
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.former_weights import former_genes

log = logging.getLogger("tadvae")

OF_THE_MODEL = ("model.", "pathways.", "preprocess.normalize", "loss.likelihood")
"""Settings that a fine-tuned model has from the model that it begins with."""
_FREE = ("pathways.file",)
"""Of these, one that may differ: a file may have moved."""


@dataclass(frozen=True)
class Pretrained:
    """A trained model that fine-tuning begins with.

    Attributes
    ----------
    place
        Where it is, for messages.
    model
        The model, with control cells of its contexts where it is a run.
    sha256
        Checksum of its weights.
    """

    place: str
    model: TADVAE
    sha256: str

    @classmethod
    def load(cls, place: str) -> "Pretrained":
        """Load the folder of a run, of a member of an ensemble or of a model, or ``hf://NAME/MODEL``.

        Raises
        ------
        UserError
            For an ensemble, a run that is not finished, or a damaged folder.
        """
        if place.startswith(HUB):
            place = download(place.removeprefix(HUB))
        run = RunFolder(place)
        if run.is_ensemble:
            member = next(iter(run.members().values()))
            raise UserError(
                f"{place}: fine-tuning begins with one model, and this is an ensemble; name a member, such "
                f"as {member}."
            )
        model = TADVAE.from_pretrained(place)
        folder = run.model if run.has_model else run.place
        return cls(place, model, sha256((folder / WEIGHTS).read_bytes()))

    @property
    def origin(self) -> Origin:
        """What the fine-tuned model records of this one."""
        words = self.model.vocabulary
        return Origin(
            RunFolder(self.place).place.name,
            self.sha256,
            len(words.datasets),
            len(words.contexts),
            len(words.targets),
            len(words.modalities),
        )

    def settings(self) -> dict[str, Any]:
        """Settings of a fine-tuning: those of the model, without its split, validation and seed.

        Schedules of the loss stand at their end, where the model's training ended.
        """
        config = self.model.config
        result = config.model_dump(exclude={"split", "validation", "seed"})
        for name in ("alpha", "beta", "temperature"):
            value = getattr(config.loss, name).at(config.train.epochs)
            result["loss"][name] = {"low": value, "high": value, "start": 0.0, "end": 0.0}
        result["train"].pop("former")
        return result | {"origin": self.place}

    def require_same_network(self, config: ExperimentConfig) -> None:
        """Raise a UserError where a config asks for another network, other pathways or another scale."""
        mine, asked = (_flat(each.model_dump()) for each in (self.model.config, config))
        for name, value in asked.items():
            kept = name.startswith(OF_THE_MODEL) and name not in _FREE
            if kept and mine[name] != value:
                raise UserError(
                    f"{name}: a fine-tuned model keeps the network, pathways and normalisation of the model "
                    f"it begins with ({self.place} has {mine[name]!r}, asked for {value!r}); leave this "
                    "setting out, or train from scratch."
                )

    def require_fits(self, store: Store) -> None:
        """Raise a UserError where a store cannot be learned by this model."""
        words, manifest = self.model.vocabulary, store.manifest
        taken = {entry.name for entry in words.datasets}
        for entry in manifest.datasets:
            if entry.name in taken:
                raise UserError(
                    f"{store.folder}: dataset '{entry.name}' has the name of a dataset of {self.place}; give "
                    "the new one another name in its spec and convert it again."
                )
        if store.reference != words.reference:
            raise UserError(
                f"{store.folder}: converted with the gene reference '{store.reference}', but {self.place} "
                f"names its genes by '{words.reference}'; convert the screens again with that reference."
            )
        if not store.genes["gene"].isin(words.genes["gene"]).any():
            raise UserError(
                f"{store.folder}: none of its genes is known to {self.place} (they look like "
                f"'{store.genes['gene'].iloc[0]}' and '{words.genes['gene'].iloc[0]}'); give screens of the "
                "same organism and kind of identifier."
            )
        effects = {entry.has_effects for entry in words.datasets}
        for entry in manifest.datasets:
            if (entry.values == "effects") not in effects:
                mine = "signed effects" if True in effects else "expression"
                raise UserError(
                    f"{store.folder}: dataset '{entry.name}' holds {entry.values}, but {self.place} learned "
                    f"from {mine} only; train from scratch, or give values of the same kind."
                )
        units = {} if words.amounts is None else words.amounts.units
        for name, unit in store.spec.units.items() if units and store.has_amounts else ():
            if units.get(name, unit) != unit:
                raise UserError(
                    f"{store.folder}: gives '{name}' in {unit!r}, but {self.place} learned it in "
                    f"{units[name]!r}; bring the column to that unit and convert again."
                )

    def known(self, store: Store) -> Vocabulary:
        """The vocabulary of the model with the gene indices of a store in its terms."""
        words = self.model.vocabulary
        place = self._places(store.genes)
        return replace(
            words,
            genes=store.genes[["gene", "ensembl_id", "symbol"]],
            membership=replace(
                words.membership, gene=place[words.membership.gene], n_genes=len(store.genes), coverage=None
            ),
            datasets=[replace(entry, genes=place[entry.genes]) for entry in words.datasets],
            targets=[replace(t, gene=int(place[t.gene]) if t.gene >= 0 else -1) for t in words.targets],
        )

    def views(self, known: Vocabulary) -> list[DatasetView]:
        """Views of the former datasets, of which nothing is read."""
        return [DatasetView(entry.genes, "none") for entry in known.datasets]

    def controls(self, store: Store) -> dict[int, Cells]:
        """Control cells of the former contexts, where the model has some."""
        place = self._places(store.genes)
        return {
            row: replace(cells, gene_ids=place[cells.gene_ids].astype(cells.gene_ids.dtype))
            for row, cells in self.model.controls.items()
        }

    def observed(self, known: Vocabulary) -> Observed | None:
        """The mean effects that the model was fitted to; None where it has none.

        Raises
        ------
        UserError
            If the model is of a version that did not keep them.
        """
        effects = self.model.effects
        if effects is None or (effects.singles is None and not effects.new_contexts):
            return None
        if effects.observed is None:
            raise UserError(
                f"{self.place}: a model of a version that did not keep the mean effects it learned from; "
                "train it again, or fine-tune the network alone with --set effects.weight=0."
            )
        genes = {i: entry.genes for i, entry in enumerate(known.datasets)}
        return replace(effects.observed, genes=genes)

    def start(self, config: ExperimentConfig, known: Vocabulary, grown: Vocabulary) -> dict[str, Tensor]:
        """Weights that the fine-tuning starts with."""
        torch.manual_seed(config.seed)
        module = TADVAEModule(config.model, config.loss, grown)
        before, after = self.model.module.pathway.edges, module.pathway.edges
        gene = self._places(grown.genes)
        rows: dict[Kind, Tensor] = {
            "gene": torch.from_numpy(gene),
            "edge": places_of_edges(before, after, gene),
            "target": torch.arange(len(known.targets)),
            "modality": torch.arange(len(known.modalities)),
            "dataset": torch.arange(len(known.datasets)),
        }
        grow(self.model.module.state_dict(), module, rows, torch.from_numpy(former_genes(grown)))
        return {name: value.clone() for name, value in module.state_dict().items()}

    def _places(self, genes: pd.DataFrame) -> np.ndarray:
        """Index of each gene of the model among others that hold them all."""
        return places_among(genes, self.model.vocabulary.genes)


def in_terms_of(store: Store, pretrained: Pretrained) -> Store:
    """The store with the indices of a model that has grown by its genes and datasets."""
    pretrained.require_fits(store)
    return StoreOfModel(store, pretrained.model.vocabulary)


def store_for(store: Store, config: ExperimentConfig) -> Store:
    """The store as a training with these settings sees it."""
    return store if config.origin is None else in_terms_of(store, Pretrained.load(config.origin))


def grown_membership(
    known: Vocabulary, store: Store, panels: list[np.ndarray], config: ExperimentConfig, origin: Origin
) -> Membership:
    """The pathways of a model, with the genes that it did not know.

    Parameters
    ----------
    known
        Vocabulary of the model on the genes of the store.
    panels
        Genes of the datasets of the new store.
    """
    mine = known.membership
    new = ~former_genes(replace(known, origin=origin))
    new[mine.gene] = False  # a member that no former dataset measured is no new one
    pathway, gene = np.zeros((2, 0), np.int64)
    if new.any():
        more = _listed(mine, store, panels, new, config)
        if more is not None:
            pathway, gene = more
    late = np.zeros(len(mine.gene), bool) if mine.late is None else mine.late
    both = np.concatenate([mine.pathway, pathway]), np.concatenate([mine.gene, gene])
    late = np.concatenate([late, np.ones(len(gene), bool)])
    order = np.lexsort((both[1], both[0]))
    measured = np.unique(np.concatenate(panels))
    logit = None
    if mine.logit is not None:  # a new member starts with a middle weight
        logit = np.concatenate([mine.logit, np.zeros(len(gene), np.float32)])[order]
    result = replace(
        mine,
        pathway=both[0][order],
        gene=both[1][order],
        late=late[order] if late.any() else None,
        logit=logit,
    )
    seen = np.stack([result.availability(panel, config.pathways.min_measured) for panel in panels])
    if not seen.any():
        raise UserError(
            f"{store.folder}: its panels measure {config.pathways.min_measured} or more genes of none of the "
            f"{result.n_pathways} pathways of the model; train from scratch with pathways that they measure."
        )
    members = np.unique(result.gene)
    coverage = Coverage(
        n_sets=result.n_pathways,
        n_kept=int(seen.any(axis=0).sum()),
        n_identifiers=len(members),
        n_identifiers_matched=int(np.isin(members, measured).sum()),
        n_genes_matched=int(np.isin(members, measured).sum()),
        n_edges=len(result.gene),
        min_measured=config.pathways.min_measured,
        dropped=(),
    )
    return replace(result, coverage=coverage)


def _listed(
    mine: Membership, store: Store, panels: list[np.ndarray], new: np.ndarray, config: ExperimentConfig
) -> tuple[np.ndarray, np.ndarray] | None:
    """Pathway and gene of the memberships of new genes; None where the file of pathways is not there."""
    genes = store.genes["gene"].tolist()
    if config.pathways.units is not None:
        found = hidden_units(config.pathways.units, len(genes))
    else:
        try:
            file = config.pathways.file
            sets = packaged().sets(genes) if file is None else read_pathways(Path(file))
            found = membership(sets, genes, resolver(store), min_measured=1)
        except UserError as error:
            log.warning("%d genes that the model does not know are in no pathway: %s", int(new.sum()), error)
            return None
    index = {name: p for p, name in enumerate(mine.pathway_ids)}
    place = np.array([index.get(name, -1) for name in found.pathway_ids], np.int64)
    keep = (place[found.pathway] >= 0) & new[found.gene]
    pathway, gene = place[found.pathway[keep]], found.gene[keep]
    if mine.permuted is not None:
        order = np.lexsort((gene, pathway))
        extra = replace(mine, pathway=pathway[order], gene=gene[order], late=None, logit=None)
        extra = permuted_genes(extra, [panel[new[panel]] for panel in panels], mine.permuted)
        pathway, gene = extra.pathway, extra.gene
    return pathway, gene


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result
