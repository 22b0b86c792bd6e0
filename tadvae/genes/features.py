"""Columns of a matrix that are not genes: antibodies, guides, nucleases, peaks."""

import re
from collections.abc import Callable, Mapping, Sequence

from tadvae.base.labels import BLANK
from tadvae.genes.reference import GeneReference, _text

FEATURE_TYPES = "feature_types"
"""Column of ``var`` with the kind of every feature, as Cell Ranger and scanpy name it."""

_GENE_TYPES = frozenset({"gene expression", "gene", "genes", "gex", "rna", "mrna"})
_OTHER_TYPES = frozenset(
    {"antibody capture", "crispr guide capture", "antigen capture", "multiplexing capture", "custom"}
    | {"peaks", "atac", "adt", "hto", "gdo", "protein", "chromatin accessibility", "cell multiplexing oligo"}
)
_CONTROL = re.compile(
    r"(?i)ntc?|non[-_ ]?targeting|neg|(neg|negative)?[-_ ]?(ctrl|control)|negative|safe([-_ ]?targeting)?"
    r"|scrambled?"
)
_NUCLEASE = re.compile(
    r"(?i)(.*[-_.: ])?(d|n|sp|sa|as|lb|rfx|psp|en|hf|hyper|lenti){0,4}cas(9|1[234]|phi|rx)(?!\d).*"
)
_ANTIBODY = re.compile(r"(?i).*[-_.]total-?seq[-_]?[abcd]?\d*([-_.]\d+)?")
_GUIDE = r"(sg|gRNA|sgRNA|crRNA|guide|guideRNA)"
_GUIDE_AFTER = re.compile(rf"(?P<target>.+?)[-_.](g|{_GUIDE})[-_]?\d{{1,4}}[A-Za-z]?")
_GUIDE_BEFORE = re.compile(rf"{_GUIDE}[-_.]?(?P<target>[A-Z0-9].*?)([-_.]\d{{1,4}})?")
_JOINTS = re.compile(r"[:|+;,&]")


def other_features(
    names: Sequence[str], types: Sequence[object] | None, reference: GeneReference
) -> list[str | None]:
    """Kind of each column that is not a gene, None for a gene.

    Parameters
    ----------
    names
        Names of the columns.
    types
        Kind of each column (``var["feature_types"]``), None where the file does not say. Where no kind is
        one of gene expression, only kinds that are known to be others are left out.
    reference
        Known genes; a name that it knows is a gene, whatever it looks like.

    Notes
    -----
    By its name a column is an antibody (``CD4_TotalSeqB``), a nuclease (``dCas9-KRAB``), a combination of
    guides (``A_g1:B_g2``), or one guide (``KLF1_g1``, ``sgKLF1``) of a gene that the panel or the reference
    has, or of a control.
    """
    texts = [_text(name) for name in names]
    panel = {text.upper() for text in texts}
    kinds = [""] * len(texts) if types is None else [_text(kind) for kind in types]
    said = {kind.lower() for kind in kinds if kind not in BLANK}
    left_out = said - _GENE_TYPES if said & _GENE_TYPES else said & _OTHER_TYPES

    def is_target(name: str) -> bool:
        known = name.upper() in panel or reference._find_exact(name) or reference._find_alias(name)
        return bool(known or _CONTROL.fullmatch(name.rstrip("-_. 0123456789")))

    result: list[str | None] = []
    for text, kind in zip(texts, kinds, strict=True):
        if kind.lower() in left_out:
            result.append(kind)
        else:
            result.append(None if reference._find(text) else _kind_by_name(text, is_target))
    return result


def _kind_by_name(name: str, is_target: Callable[[str], bool]) -> str | None:
    if _NUCLEASE.fullmatch(name):
        return "nuclease"
    if _ANTIBODY.fullmatch(name):
        return "antibody"
    guides = [_GUIDE_AFTER.fullmatch(part) or _GUIDE_BEFORE.fullmatch(part) for part in _JOINTS.split(name)]
    if len(guides) > 1 and all(guides):
        return "guide combination"
    if len(guides) == 1 and guides[0] and is_target(guides[0]["target"]):
        return "guide"
    return None


def listed(counts: Mapping[str, int]) -> str:
    """Numbers of columns by kind, for messages."""
    return ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
