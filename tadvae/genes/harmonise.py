"""Map the gene names of a panel, and the names of perturbation targets, to the keys of a reference."""

import re
from collections.abc import Sequence

import pandas as pd

from tadvae.base.errors import UserError
from tadvae.base.labels import BLANK
from tadvae.genes.reference import (
    _DIRECT,
    _ENSEMBL,
    _OTHER_CASE,
    _VAR_SYMBOL,
    GeneReference,
    _Match,
    _own_key,
    _text,
)

# Stimuli, reporters and constructs that screens use as perturbation names and that are also an alias of an
# unrelated gene (LPS of IRF6, TCR of a T-cell receptor pseudogene).
_NOT_TARGETS = BLANK | {
    *("ATP", "BFP", "IFN", "KO", "LPS", "MDP", "MTX", "NT", "PBS", "PGN", "PHA", "RFP", "SEB", "T3", "TAM"),
    *("TCR", "TPA", "TSA"),
}

_GENOME = re.compile(r"[A-Za-z][\w.-]*?_+(?=[^_])")
"""What comes before a name in a reference of several genomes: ``GRCh38_``, ``mm10___``."""

_MIN_FOREIGN = 20  # fewer names are too few to tell the organism by spelling


def harmonise(
    names: Sequence[str],
    reference: GeneReference,
    *,
    where: str,
    symbols: Sequence[str] | None = None,
    max_unknown: float = 0.5,
) -> pd.DataFrame:
    """Map the gene names of one panel to the keys of the reference.

    Parameters
    ----------
    names
        The panel's gene names, such as ``adata.var_names``.
    reference
        Known genes of the organism.
    where
        The file or column that the names come from, for messages.
    symbols
        A second column of names (``adata.var["gene_symbols"]``), used where the first gives no match.
    max_unknown
        Largest accepted share of unknown names, from 0 to 1.

    Returns
    -------
    pandas.DataFrame
        One row per name, in order. ``source``: the name as given. ``gene``: the key, unique in the table:
        the primary Ensembl id, for a gene without one its official symbol, for an unknown name the name
        (an Ensembl id without its version). ``ensembl_id`` and ``symbol``: a string or None. ``how``:
        ``ensembl``, ``ensembl_alternate``, ``symbol``, ``alias``, ``var_symbol``, ``unknown``, or, under
        the reference "none", ``as_given``.

    Raises
    ------
    UserError
        On an empty name, on a gene that occurs twice, and if too many names are unknown.

    Notes
    -----
    Ensembl ids and official symbols are direct matches. An indirect match (an alternate id, another case,
    an alias, a name without scanpy's suffix, the second column) never makes a duplicate: where its gene is
    in the panel already, or two of them meet, the weaker (both, if equally strong) keeps its own name and
    is unknown. The result does not depend on the order of the names.
    """
    if symbols is not None and len(symbols) != len(names):
        raise ValueError(f"{len(names)} names, but {len(symbols)} symbols")
    texts = [_text(name) for name in names]
    if "" in texts:
        raise UserError(f"{where}: gene number {texts.index('') + 1} has no name; name or drop that column.")
    second = [_text(symbol) for symbol in symbols] if symbols is not None else [""] * len(texts)
    second = ["" if text in BLANK else text for text in second]

    own = texts if reference.as_given else [_own_key(text) for text in texts]
    matches: list[_Match | None] = [None] * len(texts)
    if not reference.as_given:
        matches = _without_collisions(_find_all(reference, texts, own, second), own)
        _check_known(matches, texts, reference, where, max_unknown)
    keys = [match.key if match else key for match, key in zip(matches, own, strict=True)]
    _check_duplicates(keys, texts, where)

    unknown = "as_given" if reference.as_given else "unknown"
    return pd.DataFrame(
        {
            "source": list(names),
            "gene": keys,
            "ensembl_id": [_ensembl_id(reference, *pair) for pair in zip(matches, keys, strict=True)],
            "symbol": [_symbol(reference, *pair) for pair in zip(matches, second, strict=True)],
            "how": [match.how if match else unknown for match in matches],
        },
        dtype=object,
    )


def shared_prefix(names: Sequence[str], reference: GeneReference) -> str:
    """How to strip the prefix that hides the genes of a panel (``GRCh38_``), empty if none does."""
    stripped: dict[str, list[str]] = {}
    for name in names:
        if found := _GENOME.match(name):
            stripped.setdefault(found[0], []).append(name[found.end() :])
    genomes = [
        prefix
        for prefix, rest in stripped.items()
        if len(rest) > 0.05 * len(names)
        and 3 * sum(reference._find(name) is not None for name in rest) > len(rest)
    ]
    if not genomes:
        return ""
    first = max(genomes, key=lambda prefix: len(stripped[prefix]))
    others = ", ".join(f"'{prefix}'" for prefix in genomes if prefix != first)
    drop = f"; those with {others} are genes of another genome and must be dropped first" if others else ""
    return (
        f"the names begin with '{first}': strip it with adata.var_names = "
        f"adata.var_names.str.removeprefix('{first}'){drop}"
    )


def canonical_targets(
    names: Sequence[str], reference: GeneReference, *, aliases: Sequence[bool] | None = None
) -> list[str | None]:
    """Return the gene key of each perturbation target, None for a target that is not a gene (drug, stimulus).

    Only an Ensembl id, an official symbol in its own case or an unambiguous alias counts as a
    gene. Under the reference "none" every name does.

    Parameters
    ----------
    aliases
        Whether an alias counts for each name; None: for all. Where it does not, the reference "none" knows
        no gene either.
    """
    texts = [_text(name) for name in names]
    allowed = [True] * len(texts) if aliases is None else aliases
    if reference.as_given:
        return [(text or None) if alias else None for text, alias in zip(texts, allowed, strict=True)]
    matches = [
        reference._find_exact(text)
        or (reference._find_alias(text) if alias and text not in _NOT_TARGETS else None)
        for text, alias in zip(texts, allowed, strict=True)
    ]
    return [match.key if match else None for match in matches]


def _find_all(
    reference: GeneReference, texts: list[str], own: list[str], second: list[str]
) -> list[_Match | None]:
    """Match every name as given, then without its suffix, then by the second column."""
    panel = set(own)
    matches: list[_Match | None] = []
    for text, symbol in zip(texts, second, strict=True):
        match = reference._find(text) or reference._find_suffixed(text, panel)
        if match is None and symbol and (found := reference._find(symbol)):
            match = found._replace(how="var_symbol", rank=_VAR_SYMBOL)
        matches.append(match)
    return matches


def _without_collisions(matches: list[_Match | None], own: list[str]) -> list[_Match | None]:
    """Drop indirect matches whose gene has a stronger match in the panel."""
    # A name counts as taken even where it matches indirectly: without that match it keeps its own name.
    taken = set(own) | {match.key for match in matches if match and match.rank == _DIRECT}
    ranks: dict[str, list[int]] = {}
    for match in matches:
        if match and match.rank != _DIRECT:
            ranks.setdefault(match.key, []).append(match.rank)
    # With two matches of equal strength, nothing tells which of them is the gene.
    winner = {
        key: min(found) for key, found in ranks.items() if key not in taken and found.count(min(found)) == 1
    }
    return [match if match and match.rank in (_DIRECT, winner.get(match.key)) else None for match in matches]


def _check_known(
    matches: list[_Match | None], texts: list[str], reference: GeneReference, where: str, max_unknown: float
) -> None:
    """Raise a UserError for a panel of another organism, or for a column without gene names."""
    fix = (
        f"expected Ensembl ids or symbols of the gene reference {reference.name}; give the right column of"
        " var in the dataset's spec, or `genes: {reference: none}` to take names as they are."
    )
    pairs = list(zip(matches, texts, strict=True))
    # Most mouse symbols are the human ones in title case, so the match by case would map a mouse panel.
    other_case = [text for match, text in pairs if match and match.rank == _OTHER_CASE]
    foreign = [text for text in other_case if text == text.capitalize()]
    direct = sum(match is not None and match.rank == _DIRECT for match in matches)
    if len(foreign) >= max(_MIN_FOREIGN, direct):
        raise UserError(
            f"{where}: {len(foreign)} of {len(texts)} gene names are spelt as in mouse or rat (for example"
            f" {', '.join(foreign[:3])}); put the names into upper case if they are human; {fix}"
        )
    unknown = [text for match, text in pairs if match is None]
    if len(unknown) > max_unknown * len(texts):
        fix = (shared_prefix(texts, reference) or fix.rstrip(".")) + "."
        raise UserError(
            f"{where}: {len(unknown) / len(texts):.0%} of {len(texts)} gene names are unknown (for example"
            f" {', '.join(unknown[:3])}), more than {max_unknown:.0%}; {fix}"
        )


def _check_duplicates(keys: list[str], texts: list[str], where: str) -> None:
    """Raise a UserError if a gene occurs twice."""
    groups: dict[str, list[str]] = {}
    for key, text in zip(keys, texts, strict=True):
        groups.setdefault(key, []).append(text)
    if repeated := sorted((key, sorted(group)) for key, group in groups.items() if len(group) > 1):
        shown = "; ".join(f"{key} as {' and '.join(group[:3])}" for key, group in repeated[:5])
        raise UserError(
            f"{where}: duplicate genes after harmonisation, {len(repeated)} in all ({shown}); sum or drop the"
            " duplicated columns, e.g. adata = adata[:, ~adata.var_names.duplicated()]."
        )


def _ensembl_id(reference: GeneReference, match: _Match | None, key: str) -> str | None:
    if match and match.gene is not None:
        return reference._ids[match.gene] or None
    found = _ENSEMBL.fullmatch(key)
    return found[1] if found and not found[2] else None


def _symbol(reference: GeneReference, match: _Match | None, second: str) -> str | None:
    official = reference._symbols[match.gene] if match and match.gene is not None else ""
    return official or (second if match or reference.as_given else None) or None
