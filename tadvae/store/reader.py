"""Reading a cell store."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tadvae.base.checksums import sha256
from tadvae.base.errors import StorageError, UserError
from tadvae.base.filesystem import Location
from tadvae.genes.names import GeneNames
from tadvae.genes.reference import GeneReference
from tadvae.store import checks
from tadvae.store.covariates import AMOUNTS
from tadvae.store.manifest import (
    DATASET_NAME,
    GROUP_KEYS,
    GUIDES,
    LABELS,
    MANIFEST,
    REPAIR,
    Manifest,
    checked,
    vocabulary_hash,
)
from tadvae.store.spec import StoreSpec
from tadvae.store.tokens import COLUMNS, unpack_tokens


class Store:
    """An open cell store; each table is read, and compared with the others, on first access.

    Attributes
    ----------
    genes
        The vocabulary, one row per gene: gene_index, gene, ensembl_id, symbol.
    perturbations
        One row per perturbation: perturbation_index, name, targets, target_genes, modalities, signs, n_cells.
    bags
        One row per bag: dataset, context, perturbation, n_cells, n_tokens, shard, row_group, first_row. The
        row number is the id of the bag.
    """

    gene_of_file: np.ndarray | None = None
    """Index of each gene of the files among :attr:`genes`; None: they are the same."""

    def __init__(self, folder: Location, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._files = checked(folder)

    @classmethod
    def open(cls, place: "str | Location") -> "Store":
        """Open a store and check that all its shards exist; a missing or damaged one is a UserError."""
        folder = Location.of(place)
        store = cls(folder, Manifest.read(folder))
        for i, shard in enumerate(store.manifest.shards):
            pattern = store.manifest.shard_pattern(i)
            size = folder.inside(shard.path, pattern, folder / MANIFEST).size()
            if size != shard.size:
                found = "is missing" if size is None else f"has {size:,} bytes instead of {shard.size:,}"
                raise UserError(
                    f"{folder}: shard {shard.path} {found}; restore the file or convert the store again."
                )
        if vocabulary_hash(store.genes["gene"]) != store.manifest.vocabulary_hash:
            raise UserError(
                f"{folder}: genes.parquet does not belong to this manifest; convert the store again."
            )
        return store

    def verify(self, shard: int, tokens: bool = False) -> None:
        """Compare a shard with its checksum, and its labels and sizes with the table of bags.

        Parameters
        ----------
        tokens
            Whether to decode all cells too; reading them does so anyway.

        Raises
        ------
        UserError
            If the shard is damaged, or is not the one that the store was converted with.
        """
        entry = self.manifest.shards[shard]
        place = self.folder / entry.path
        with place.reachable():
            data = place.read_bytes()
        if sha256(data) != entry.sha256:
            raise UserError(
                f"{self.folder}: the checksum of shard {entry.path} fails (sha256 {sha256(data)[:12]}…, "
                f"manifest {entry.sha256[:12]}…); {REPAIR}."
            )
        bags, names = self.bags[self.bags["shard"] == shard], self.perturbations["name"].to_numpy()
        columns = [*dict.fromkeys((*checks.SHARD_COLUMNS, *(COLUMNS if tokens else ())))]
        with self._damaged(f"shard {entry.path}"):
            file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
            checks.check_shard_size(file.metadata.num_rows, file.num_row_groups, entry, bags)
            for group, rows in bags.groupby("row_group"):
                table = file.read_row_group(int(group), columns=columns, use_threads=False)
                checks.check_row_group(table, rows, self.manifest.contexts, names)
                if tokens:
                    checks.check_encoding(table, self.manifest.datasets[entry.dataset])
                    checks.check_measured(
                        unpack_tokens(table, self.manifest.n_genes)[0], self._measured[entry.dataset]
                    )

    def verify_tables(self) -> None:
        """Read all tables, and compare them with their checksums and with each other."""
        for dataset in range(len(self.manifest.datasets)):
            self.panel(dataset)
        _ = self.reference, self.labels, self.guides
        with self._damaged("perturbations.parquet"):
            checks.check_groups(self.perturbations, self.groups, self.manifest)

    @property
    def n_bytes(self) -> int:
        """Size of the files of cells."""
        return sum(shard.size for shard in self.manifest.shards)

    @cached_property
    def genes(self) -> pd.DataFrame:
        """The gene vocabulary, one row per gene."""
        genes = self._table("genes.parquet")
        with self._damaged("genes.parquet"):
            checks.check_genes(genes, self.manifest)
        return genes

    @cached_property
    def perturbations(self) -> pd.DataFrame:
        """All perturbations, one row each; the control is one of them."""
        table = self._table("perturbations.parquet")
        with self._damaged("perturbations.parquet"):
            checks.check_perturbations(table, self.manifest.n_genes)
        return table

    @property
    def has_amounts(self) -> bool:
        """Whether some perturbations have a dose or a time."""
        return any(name in self.perturbations and self.perturbations[name].notna().any() for name in AMOUNTS)

    @cached_property
    def log_amounts(self) -> np.ndarray:
        """Logarithm of dose and time of each perturbation, (n_perturbations, 2); NaN: it has none."""
        table = self.perturbations
        none = np.full(len(table), np.nan)
        found = [np.log(table[n].to_numpy(np.float64)) if n in table else none for n in AMOUNTS]
        return np.stack(found, axis=1)

    @cached_property
    def bags(self) -> pd.DataFrame:
        """All bags, one row each."""
        bags, n_perturbations = self._table("bags.parquet"), len(self.perturbations)
        with self._damaged("bags.parquet"):
            checks.check_bags(bags, self.manifest, n_perturbations)
        return bags

    @cached_property
    def groups(self) -> pd.DataFrame:
        """Number of cells of each (dataset, context, perturbation)."""
        return self.bags.groupby(GROUP_KEYS, as_index=False)["n_cells"].sum()

    @cached_property
    def control(self) -> int:
        """Index of the control among the perturbations, -1 if no dataset has one."""
        found = self.perturbations["perturbation_index"][self.perturbations["targets"].str.len() == 0]
        return int(found.iloc[0]) if len(found) else -1

    @cached_property
    def spec(self) -> StoreSpec:
        """The spec that the store was converted from; of paths it has only file names."""
        place = self.folder / "spec.yaml"
        with place.reachable():
            text = self._files.read(place.name).decode("utf-8", "replace")
        return StoreSpec.load_text(text, str(place))

    @cached_property
    def reference(self) -> str:
        """Gene reference of the conversion: ``human``, ``none``, or ``own`` for the user's own table."""
        return self.spec.genes.reference if self.spec.genes.reference in ("human", "none") else "own"

    @cached_property
    def labels(self) -> list[dict[str, tuple[str, ...]]]:
        """For each dataset, targets by label and part of a label; empty in stores of earlier versions."""
        result: list[dict[str, tuple[str, ...]]] = [{} for _ in self.manifest.datasets]
        if self._files.has(LABELS):
            table = self._table(LABELS)
            with self._damaged(LABELS):
                checks.check_labels(table, len(result))
            for row in table.itertuples():
                result[row.dataset][row.label] = tuple(row.targets)
        return result

    @cached_property
    def guides(self) -> pd.DataFrame | None:
        """Cells by guide and number of guides (-1: not known); None if no spec named such columns."""
        if not self._files.has(GUIDES):
            return None
        table = self._table(GUIDES)
        with self._damaged(GUIDES):
            checks.check_guides(table, self.groups)
        return table

    @cached_property
    def separators(self) -> list[str | None]:
        """For each dataset, the text between the targets of a combination."""
        found = [dataset.perturbation for dataset in self.spec.datasets]
        return [None if each is None else each.separator for each in found]

    @cached_property
    def library_columns(self) -> list[str | None]:
        """For each dataset, the column of ``obs`` with library sizes; None: the sums of the counts."""
        return [dataset.total_counts for dataset in self.spec.datasets]

    @cached_property
    def gene_reference(self) -> GeneReference:
        """Reference that maps identifiers to the gene keys of the store."""
        if self.reference == "own":
            return GeneReference("the store's genes", self.genes)
        return GeneReference.load(self.reference)

    @cached_property
    def gene_names(self) -> GeneNames:
        """Look-up of the store's genes by any name, also those of the files it was converted from."""
        files = []
        for dataset in range(len(self.manifest.datasets)):
            panel = self.panel(dataset)
            names = dict(zip(panel["var_name"], panel["gene"], strict=True))
            files.append(names | dict(zip(panel["source"], panel["gene"], strict=True)))
        return GeneNames(self.gene_reference, self.genes["gene"], files)

    def panel(self, dataset: int) -> pd.DataFrame:
        """Measured genes of a dataset, one row each, sorted by gene_index."""
        entry = self.manifest.datasets[dataset]
        name = f"datasets/{entry.name}.parquet"
        self.folder.inside(name, rf"datasets/{DATASET_NAME}\.parquet", self.folder / MANIFEST)
        panel = self._table(name)
        with self._damaged(name):
            checks.check_panel(panel, self.genes, entry)
        # stores of earlier versions: the name in the file is the identifier, unless a column was named
        return panel if "var_name" in panel else panel.assign(var_name=panel["source"])

    def row_groups(self, bags: pd.DataFrame) -> list[tuple[int, int, np.ndarray]]:
        """(shard, row group, bag ids) of some rows of :attr:`bags`, in stored order."""
        return [
            (int(shard), int(group), frame.index.to_numpy())
            for (shard, group), frame in bags.groupby(["shard", "row_group"], sort=True)
        ]

    def read_bags(
        self, shard: int, row_group: int, bag_ids: np.ndarray, columns: Sequence[str]
    ) -> tuple[pa.Table, np.ndarray]:
        """Read some bags of one row group.

        Returns
        -------
        The rows of the bags in stored order, and the bag id of every row.
        """
        entry = self.manifest.shards[shard]
        place = self.folder / entry.path
        where = f"shard {entry.path} at row group {row_group}"
        with self._damaged(where):
            place.require_regular()
            with place.filesystem.open_input_file(place.path) as file:
                table = pq.ParquetFile(file, page_checksum_verification=True).read_row_group(
                    row_group, columns=list(columns), use_threads=False
                )
        chosen = np.sort(bag_ids)
        columns_of_bags = (
            self.bags[name].to_numpy()[chosen] for name in ("first_row", "n_cells", "n_tokens")
        )
        first, size, n_tokens = columns_of_bags
        bag_of_row = np.repeat(chosen, size)
        if len(bag_of_row) < table.num_rows:
            table = pa.concat_tables([table.slice(a, n) for a, n in zip(first, size, strict=True)])
        table = table.combine_chunks()
        with self._damaged(where):
            checks.check_columns(table, columns)
            if "counts" in columns:
                checks.check_encoding(table, self.manifest.datasets[entry.dataset])
            if "n_tokens" in columns:
                checks.check_tokens_of_bags(table, size, n_tokens)
        return table, bag_of_row

    @cached_property
    def _measured(self) -> list[np.ndarray]:
        """For each dataset, whether a gene is measured in it, bool, by vocabulary index."""
        genes = np.arange(self.manifest.n_genes)
        panels = [self.panel(i) for i in range(len(self.manifest.datasets))]
        return [np.isin(genes, panel["gene_index"].to_numpy()) for panel in panels]

    def _table(self, name: str) -> pd.DataFrame:
        table = self._files.table(name)
        with self._damaged(name):
            return table.to_pandas()

    @contextmanager
    def _damaged(self, name: str) -> Iterator[None]:
        """Turn an error about the content of a file into a UserError of one sentence."""
        try:
            yield
        except (OSError, pa.ArrowException, LookupError, ValueError, TypeError) as error:
            # what a network loses may come back, unlike what is not on the disk as it was written
            lost = isinstance(error, OSError) and (error.errno or not self.folder.is_local)
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
            raise (StorageError if lost else UserError)(
                f"{self.folder}: {name} cannot be used ({reason}); restore the file or {REPAIR}."
            ) from None
