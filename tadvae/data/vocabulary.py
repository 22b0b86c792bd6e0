"""The vocabulary of a model: genes, pathways, datasets, contexts, targets, modalities by index.

It is saved with the weights, so that a model can be used without its store and its screens.
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tadvae.base.checksums import CheckedFolder
from tadvae.base.documents import parse_json
from tadvae.base.errors import UserError, require
from tadvae.base.filesystem import Location
from tadvae.cells.normalize import SCALE
from tadvae.data.amounts import SeenAmounts
from tadvae.data.entries import ContextEntry, DatasetEntry, TargetEntry
from tadvae.data.lookup import Lookup
from tadvae.data.origin import Origin
from tadvae.data.spellings import LABELS, NAMES, read_spellings, write_spellings
from tadvae.genes.names import GeneNames
from tadvae.genes.reference import GeneReference
from tadvae.pathways.membership import Membership
from tadvae.store.manifest import vocabulary_hash
from tadvae.store.spec import Kind

TEXT, GENES, PATHWAYS, PROFILES = (
    "vocabulary.json",
    "genes.parquet",
    "pathways.parquet",
    "profiles.safetensors",
)
VOCABULARY_FILES = (TEXT, GENES, PATHWAYS, PROFILES, NAMES, LABELS)
REPAIR = "copy it again from its run"
REFERENCES = ("human", "none", "own")
"""Gene references that a model can name; never a file, which a model from elsewhere could choose."""


def model_files(folder: Location) -> CheckedFolder:
    """The files of a model folder."""
    return CheckedFolder(folder, "model", REPAIR)


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary; every list is in the order of the model's indices."""

    genes: pd.DataFrame
    """One row per gene: gene (key), ensembl_id, symbol."""
    membership: Membership
    """Pathways and their genes."""
    min_measured: int
    """Measured genes that a pathway needs to be available in a dataset."""
    datasets: list[DatasetEntry]
    """Training datasets."""
    contexts: list[ContextEntry]
    """Contexts of the training datasets."""
    targets: list[TargetEntry]
    """Targets of all perturbations."""
    modalities: list[str]
    """Names of the modalities, such as CRISPRi."""
    signs: list[int]
    """Sign of each modality: +1 activation, -1 loss of function, 0 neither."""
    reference: str = "human"
    """Gene reference that maps identifiers of other files to these gene keys: ``human``, ``none``, or ``own``
    (only the genes of this vocabulary)."""
    origin: Origin | None = None
    """The model that this one was fine-tuned from; None: it was trained from scratch."""
    amounts: SeenAmounts | None = None
    """Doses and times of training; None: the model reads none."""

    @property
    def n_genes(self) -> int:
        """Size of the gene vocabulary."""
        return len(self.genes)

    @cached_property
    def hash(self) -> str:
        """Hash of the ordered genes; equal to that of the store."""
        return vocabulary_hash(self.genes["gene"])

    @cached_property
    def available(self) -> np.ndarray:
        """Whether each pathway is available in each dataset, bool, shape (D, P)."""
        rows = [self.membership.availability(dataset.genes, self.min_measured) for dataset in self.datasets]
        return np.stack(rows) if rows else np.empty((0, self.membership.n_pathways), bool)

    @cached_property
    def gene_index(self) -> dict[str, int]:
        """Vocabulary index by gene key."""
        return {gene: i for i, gene in enumerate(self.genes["gene"])}

    @cached_property
    def target_index(self) -> dict[str, int]:
        """Target index by name."""
        return {target.name: i for i, target in enumerate(self.targets)}

    @cached_property
    def gene_reference(self) -> GeneReference:
        """The gene reference that :attr:`reference` names."""
        if self.reference == "own":
            return GeneReference("the model's genes", self.genes)
        return GeneReference.load(self.reference)

    @cached_property
    def gene_names(self) -> GeneNames:
        """Look-up of genes by any name, also those of the files that the model was trained on."""
        keys = self.genes["gene"].to_numpy()
        files = [dict(zip(each.names or (), keys[each.genes], strict=False)) for each in self.datasets]
        return GeneNames(self.gene_reference, keys, files)

    @cached_property
    def lookup(self) -> Lookup:
        """Look-up of perturbations by any name, also by the labels of the training files."""
        keys = self.genes["gene"].to_numpy()
        names = [target.name for target in self.targets]
        return Lookup(
            {target.name: keys[target.gene] if target.gene >= 0 else None for target in self.targets},
            [
                {label: tuple(names[i] for i in item) for label, item in dataset.labels.items()}
                for dataset in self.datasets
            ],
            [dataset.separator for dataset in self.datasets],
            self.gene_names,
        )

    def names(self, genes: np.ndarray, dataset: int | None = None) -> list[str]:
        """Names of vocabulary indices as the user's own files have them.

        Parameters
        ----------
        dataset
            Index of the dataset whose file counts; None: names that all datasets agree on. A gene without
            such a name has that of :meth:`symbols`.
        """
        asked = self.datasets if dataset is None else [self.datasets[dataset]]
        own: dict[int, str | None] = {}
        for entry in asked:
            for gene, name in zip(entry.genes.tolist(), entry.names or (), strict=False):
                if own.setdefault(gene, name) != name:
                    own[gene] = None
        return [
            own.get(gene) or symbol for gene, symbol in zip(genes.tolist(), self.symbols(genes), strict=True)
        ]

    def symbols(self, genes: np.ndarray) -> list[str]:
        """Readable names of vocabulary indices: the symbol if the gene has one, else the key."""
        rows = self.genes.iloc[genes]
        result: list[str] = rows["symbol"].where(rows["symbol"].notna(), rows["gene"]).tolist()
        return result

    def context(self, name: str, dataset: str | None = None) -> int:
        """Index of a context by name, and by dataset if several have it; an unknown one is a UserError."""
        named = [i for i, c in enumerate(self.contexts) if c.name == name]
        if not named:
            known = ", ".join(sorted({c.name for c in self.contexts}))
            raise UserError(
                f"context '{name}' was not in training (known: {known}); give one of these, or "
                "control cells of the new context with --controls."
            )
        found = [i for i in named if dataset in (None, self.datasets[self.contexts[i].dataset].name)]
        holders = ", ".join(self.datasets[self.contexts[i].dataset].name for i in named)
        if not found:
            raise UserError(f"dataset '{dataset}' has no context '{name}' (it is in {holders}).")
        if len(found) > 1:
            raise UserError(f"context '{name}' is in several datasets ({holders}); name one with --dataset.")
        return found[0]

    def save(self, folder: Location) -> None:
        """Write vocabulary.json, profiles.safetensors and the tables genes, pathways, names and labels."""
        _write_table(self.genes, folder / GENES)
        edges = pd.DataFrame({"pathway": self.membership.pathway, "gene": self.membership.gene})
        if self.membership.logit is not None:
            edges["logit"] = self.membership.logit
        if self.membership.late is not None:
            edges["late"] = self.membership.late
        _write_table(edges, folder / PATHWAYS)
        write_spellings(self.datasets, folder)
        arrays = {}
        for i, dataset in enumerate(self.datasets):
            arrays[f"dataset.{i}"] = dataset.genes.astype(np.int64)
        for i, context in enumerate(self.contexts):
            arrays[f"context.{i}"] = context.profile.astype(np.float32)
        (folder / PROFILES).write_bytes(save(arrays))
        text: dict[str, Any] = {
            "hash": self.hash,
            "min_measured": self.min_measured,
            "permuted_pathways": self.membership.permuted,
            "pathways": [
                {"id": i, "name": name}
                for i, name in zip(self.membership.pathway_ids, self.membership.names, strict=True)
            ],
            "datasets": [_without(asdict(dataset), "genes", "names", "labels") for dataset in self.datasets],
            "contexts": [_without(asdict(context), "profile") for context in self.contexts],
            "targets": [asdict(target) for target in self.targets],
            "modalities": self.modalities,
            "signs": self.signs,
            "reference": self.reference,
        }
        if self.origin is not None:
            text["origin"] = asdict(self.origin)
        if self.amounts is not None:
            text["amounts"] = asdict(self.amounts)
        (folder / TEXT).write_text(json.dumps(text, indent=1))

    @classmethod
    def load(cls, folder: Location) -> "Vocabulary":
        """Read what :meth:`save` wrote; a folder that is no model is a UserError."""
        if not (folder / TEXT).exists():
            raise UserError(
                f"{folder}: not a model folder (it has no vocabulary.json); give the folder of a "
                "finished run or of save_pretrained."
            )
        files = model_files(folder)
        try:
            data = (folder / TEXT).read_bytes()
            text = parse_json(data)
            genes, edges = (files.table(name).to_pandas() for name in (GENES, PATHWAYS))
            arrays = load(files.read(PROFILES))
            membership = Membership(
                pathway_ids=[p["id"] for p in text["pathways"]],
                names=[p["name"] for p in text["pathways"]],
                pathway=edges["pathway"].to_numpy(np.int64),
                gene=edges["gene"].to_numpy(np.int64),
                n_genes=len(genes),
                permuted=text.get("permuted_pathways"),
                logit=edges["logit"].to_numpy(np.float32) if "logit" in edges else None,
                late=edges["late"].to_numpy() if "late" in edges else None,
            )
            panels = [arrays[f"dataset.{i}"] for i in range(len(text["datasets"]))]
            spellings = read_spellings(files, panels)
            datasets = []
            for entry, panel, spelt in zip(text["datasets"], panels, spellings, strict=True):
                entry["target_modality"] = {int(t): m for t, m in entry["target_modality"].items()}
                datasets.append(DatasetEntry(genes=panel, **entry, **spelt))
            result = cls(
                genes=genes,
                membership=membership,
                min_measured=text["min_measured"],
                datasets=datasets,
                contexts=[
                    ContextEntry(profile=arrays[f"context.{i}"], **entry)
                    for i, entry in enumerate(text["contexts"])
                ],
                targets=[TargetEntry(**entry) for entry in text["targets"]],
                modalities=text["modalities"],
                signs=text["signs"],
                reference=text["reference"],
                origin=Origin(**text["origin"]) if "origin" in text else None,
                amounts=SeenAmounts.read(text["amounts"]) if "amounts" in text else None,
            )
            result._check()
            found, expected = result.hash, text["hash"]
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            OSError,
            OverflowError,
            pa.ArrowException,
            SafetensorError,
        ) as error:
            raise UserError(
                f"{folder}: damaged model folder ({type(error).__name__}: {str(error)[:120]}); {REPAIR}."
            ) from None
        if found != expected:
            raise UserError(
                f"{folder}: genes.parquet does not belong to this model (vocabulary {found}, "
                f"expected {expected}); copy the folder again from its run."
            )
        files.compare(TEXT, data)
        return result

    def _check(self) -> None:
        """Raise a ValueError if what was read does not fit together."""
        require(self.reference in REFERENCES, f"unknown gene reference {self.reference!r:.60}")
        require(self.genes["gene"].notna().all() and self.genes["gene"].is_unique, "repeated genes")
        require({"ensembl_id", "symbol"} <= set(self.genes.columns), "a column of the genes is missing")
        texts = [*self.modalities, *self.membership.pathway_ids, *self.membership.names]
        for entries in (self.datasets, self.contexts, self.targets):
            texts += [entry.name for entry in entries]
        require(all(isinstance(text, str) for text in texts), "a name is no text")
        require(_is_index(self.min_measured), "min_measured is no whole number")
        permuted = self.membership.permuted
        require(permuted is None or _is_index(permuted), "permuted_pathways is no seed")
        signs = all(_is_index(sign, 2, least=-1) for sign in self.signs)
        require(signs and len(self.signs) == len(self.modalities), "modalities without their signs")
        if self.origin is not None:
            self.origin.check(len(self.datasets), len(self.contexts), len(self.targets), len(self.modalities))
        if self.amounts is not None:
            self.amounts.check(len(self.datasets), len(self.targets))
        for target in self.targets:
            require(_is_index(target.gene, self.n_genes, least=-1), f"target '{target.name}' has no gene")
            require(isinstance(target.seen, bool), f"target '{target.name}' is neither seen nor unseen")
        for dataset in self.datasets:
            self._check_dataset(dataset)
        for context in self.contexts:
            require(
                _is_index(context.dataset, len(self.datasets)), f"context '{context.name}' has no dataset"
            )
            require(_is_index(context.n_controls), f"context '{context.name}' has no number of controls")
            profile, genes = context.profile, self.datasets[context.dataset].genes
            fits = profile.shape == genes.shape and profile.dtype == np.float32 and np.isfinite(profile).all()
            require(fits, f"the profile of context '{context.name}' is not over its dataset's genes")

    def _check_dataset(self, dataset: DatasetEntry) -> None:
        genes, name = dataset.genes, dataset.name
        sorted_genes = genes.dtype == np.int64 and genes.ndim == 1 and (np.diff(genes) > 0).all()
        require(sorted_genes, f"the genes of dataset '{name}' are not sorted")
        inside = not genes.size or (genes[0] >= 0 and genes[-1] < self.n_genes)
        require(inside, f"dataset '{name}' has genes outside the vocabulary")
        named = dataset.names is None or len(dataset.names) == len(genes)
        require(named, f"dataset '{name}' has not one name for each gene")
        text = dataset.total_counts is None or isinstance(dataset.total_counts, str)
        require(text, f"the column of library sizes of dataset '{name}' is no text")
        targets = {target for item in dataset.labels.values() for target in item}
        known = all(_is_index(target, len(self.targets)) for target in targets)
        require(known, f"dataset '{name}' has labels with unknown targets")
        require(dataset.method in (*SCALE, "none"), f"dataset '{name}' has an unknown normalisation")
        require(dataset.kind in get_args(Kind), f"dataset '{name}' is of an unknown kind")
        by_target = dataset.target_modality
        known = all(
            _is_index(t, len(self.targets)) and _is_index(m, len(self.modalities))
            for t, m in by_target.items()
        )
        require(known, f"dataset '{name}' names targets or modalities that do not exist")
        fits = _is_index(dataset.modality, max(len(self.modalities), 1))
        require(fits, f"dataset '{name}' names a modality that does not exist")


def _is_index(value: object, limit: int | None = None, least: int = 0) -> bool:
    """Whether a value from a file is a whole number from ``least`` to below the limit."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return least <= value and (limit is None or value < limit)


def _without(entry: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in keys}


def _write_table(frame: pd.DataFrame, place: Location) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), buffer, compression="zstd")
    place.write_bytes(buffer.getvalue())
