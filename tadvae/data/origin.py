"""What a fine-tuned model records of the model that it began with."""

from dataclasses import dataclass, fields

from tadvae.base.errors import require


@dataclass(frozen=True)
class Origin:
    """The model that fine-tuning began with; its rows come first in every list of the vocabulary.

    Attributes
    ----------
    name
        Name of its folder.
    sha256
        Checksum of its weights.
    n_datasets, n_contexts, n_targets, n_modalities
        Number of datasets, contexts, targets and modalities that it knew.
    """

    name: str
    sha256: str
    n_datasets: int
    n_contexts: int
    n_targets: int
    n_modalities: int

    def check(self, *limits: int) -> None:
        """Raise a ValueError if what was read from a file is not an origin.

        Parameters
        ----------
        limits
            Numbers of datasets, contexts, targets and modalities of the vocabulary.
        """
        require(isinstance(self.name, str) and isinstance(self.sha256, str), "the origin has no name")
        counts = [getattr(self, field.name) for field in fields(self)[2:]]
        fits = all(type(n) is int and 0 <= n <= limit for n, limit in zip(counts, limits, strict=True))
        require(fits, "the origin has more entries than the model")
