"""One look-up of genes by name, for settings, files and questions: any spelling that a user may have."""

from collections.abc import Iterable, Mapping, Sequence

from tadvae.genes.harmonise import canonical_targets
from tadvae.genes.reference import GeneReference


class GeneNames:
    """Finds the genes of a store or model by name.

    Parameters
    ----------
    reference
        Reference behind the gene keys.
    keys
        Keys of the known genes.
    files
        For each dataset, gene key by the name in its own file.
    """

    def __init__(
        self, reference: GeneReference, keys: Iterable[str], files: Sequence[Mapping[str, str]]
    ) -> None:
        self._reference, self._known, self._files = reference, set(keys), files
        self._elsewhere: dict[str, str | None] = {}
        for file in files:
            for name, key in file.items():
                if self._elsewhere.setdefault(name, key) != key:
                    self._elsewhere[name] = None  # datasets mean different genes by it

    def keys(self, names: Sequence[str], dataset: int | None = None) -> list[str | None]:
        """Key of each gene, None for a name that is no known gene.

        The file of the asked dataset comes first, then Ensembl ids, official symbols and aliases, then the
        files of the other datasets.
        """
        asked = {} if dataset is None else self._files[dataset]
        result = []
        for name, key in zip(names, canonical_targets(names, self._reference), strict=True):
            found = (asked.get(name), key, self._elsewhere.get(name), name)
            result.append(next((each for each in found if each in self._known), None))
        return result
