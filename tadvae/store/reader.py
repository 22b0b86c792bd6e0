"""Reading a cell store."""

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.genes.names import GeneNames
from tadvae.genes.reference import GeneReference
from tadvae.store.manifest import GROUP_KEYS, LABELS, Manifest, vocabulary_hash
from tadvae.store.spec import StoreSpec


class Store:
    """An open cell store; each table is read on first access.

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

    def __init__(self, folder: Location, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, place: "str | Location") -> "Store":
        """Open a store and check that all its shards exist; a missing or damaged one is a UserError."""
        folder = Location.of(place)
        store = cls(folder, Manifest.read(folder))
        for shard in store.manifest.shards:
            size = (folder / shard.path).size()
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

    def verify(self, shard: int) -> None:
        """Compare the sha256 of a shard with that in the manifest; a difference is a UserError."""
        entry = self.manifest.shards[shard]
        place = self.folder / entry.path
        with place.reachable():
            found = hashlib.sha256(place.read_bytes()).hexdigest()
        if found != entry.sha256:
            raise UserError(
                f"{self.folder}: the checksum of shard {entry.path} fails (sha256 {found[:12]}…, "
                f"manifest {entry.sha256[:12]}…); convert the store again."
            )

    @cached_property
    def genes(self) -> pd.DataFrame:
        """The gene vocabulary, one row per gene."""
        return self._table("genes.parquet")

    @cached_property
    def perturbations(self) -> pd.DataFrame:
        """All perturbations, one row each; the control is one of them."""
        return self._table("perturbations.parquet")

    @cached_property
    def bags(self) -> pd.DataFrame:
        """All bags, one row each."""
        return self._table("bags.parquet")

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
            return StoreSpec.load_text(place.read_text(), str(place))

    @cached_property
    def reference(self) -> str:
        """Gene reference of the conversion: ``human``, ``none``, or ``own`` for the user's own table."""
        return self.spec.genes.reference if self.spec.genes.reference in ("human", "none") else "own"

    @cached_property
    def labels(self) -> list[dict[str, tuple[str, ...]]]:
        """For each dataset, targets by label and part of a label; empty in stores of earlier versions."""
        result: list[dict[str, tuple[str, ...]]] = [{} for _ in self.manifest.datasets]
        if (self.folder / LABELS).exists():
            for row in self._table(LABELS).itertuples():
                result[row.dataset][row.label] = tuple(row.targets)
        return result

    @cached_property
    def separators(self) -> list[str | None]:
        """For each dataset, the text between the targets of a combination."""
        found = [dataset.perturbation for dataset in self.spec.datasets]
        return [None if each is None else each.separator for each in found]

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
        table = self._table(f"datasets/{self.manifest.datasets[dataset].name}.parquet")
        # stores of earlier versions: the name in the file is the identifier, unless a column was named
        return table if "var_name" in table else table.assign(var_name=table["source"])

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
        try:
            with place.filesystem.open_input_file(place.path) as file:
                table = pq.ParquetFile(file, page_checksum_verification=True).read_row_group(
                    row_group, columns=list(columns), use_threads=False
                )
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0][:160]
            raise UserError(
                f"{self.folder}: shard {entry.path} cannot be read at row group {row_group} "
                f"({reason}); restore the file or convert the store again."
            ) from None
        chosen = np.sort(bag_ids)
        first, size = (self.bags[name].to_numpy()[chosen] for name in ("first_row", "n_cells"))
        bag_of_row = np.repeat(chosen, size)
        if len(bag_of_row) < table.num_rows:
            table = pa.concat_tables([table.slice(a, n) for a, n in zip(first, size, strict=True)])
        return table.combine_chunks(), bag_of_row

    def _table(self, name: str) -> pd.DataFrame:
        place = self.folder / name
        try:
            with place.filesystem.open_input_file(place.path) as file:
                return pq.read_table(file).to_pandas()
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0][:160]
            raise UserError(f"{place}: cannot be read ({reason}); convert the store again.") from None
