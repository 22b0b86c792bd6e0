"""Pathways as a file gives them: identifiers, names and genes."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PathwaySets:
    """Pathways as a file gives them.

    Parameters
    ----------
    ids
        Unique identifiers, one per pathway.
    names
        Readable names; an empty one falls back to the identifier.
    genes
        Gene identifiers of each pathway as given; repeats are dropped, the order is kept.
    source
        Where the sets come from, for messages; not compared.

    Raises
    ------
    ValueError
        If the lists differ in length or an identifier is repeated.
    """

    ids: list[str]
    names: list[str]
    genes: list[list[str]]
    source: str = field(default="the pathway sets", compare=False)

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.names) == len(self.genes):
            raise ValueError(f"{len(self.ids)} ids, {len(self.names)} names, {len(self.genes)} gene lists")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("pathway ids are not unique")
        named = [name or key for key, name in zip(self.ids, self.names, strict=True)]
        object.__setattr__(self, "names", named)
        object.__setattr__(self, "genes", [list(dict.fromkeys(genes)) for genes in self.genes])

    def __len__(self) -> int:
        return len(self.ids)
