"""The Gene Ontology's graph: OBO files and the transitive closure.

An ontology is a directed acyclic graph of terms. GO defines along which relations annotations of genes may be
grouped (geneontology.org, "Relations in the Gene Ontology"): a gene of a term is also a gene of all ancestors
over ``is_a`` and ``part_of``. Strictly, this does not hold for ``regulates``, because the regulator of a
process is not a part of it; Bioconductor's GO.db, and with it NetActivity, follows these relations too, so
they are an option here.

A malformed file is refused with one sentence that names file and line.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import sparse

from tadvae.base.errors import UserError
from tadvae.pathways.textfile import read_text

GROUPING = ("is_a", "part_of")
"""Relations along which GO groups annotations."""
REGULATES = ("regulates", "positively_regulates", "negatively_regulates")
"""Relations from a regulating process to the regulated one."""
Aspect = Literal["P", "F", "C"]
NAMESPACES: Mapping[Aspect, str] = {
    "P": "biological_process",
    "F": "molecular_function",
    "C": "cellular_component",
}
"""The three ontologies of GO, by the letter that annotation files use."""

Edge = tuple[str, str, str]
"""Identifiers (child, relation, parent) of one relation between terms."""


def relations(regulates: bool) -> tuple[str, ...]:
    """Relations that define ancestors, with or without the regulating ones."""
    return GROUPING + REGULATES if regulates else GROUPING


@dataclass(frozen=True, eq=False)
class Ontology:
    """Terms and their relations.

    Parameters
    ----------
    names
        Readable name of every term.
    edges
        Relations between these terms.
    source, release
        File and release, for messages and provenance.
    alternates
        Term by former identifier, for identifiers that were merged into a term or replaced by it.
    obsolete
        Former terms without a unique successor.
    lines
        Line of each edge in the file.

    Raises
    ------
    UserError
        If an edge refers to an unknown term.
    """

    names: Mapping[str, str]
    edges: Sequence[Edge]
    source: str = "the ontology"
    release: str = ""
    alternates: Mapping[str, str] = field(default_factory=dict)
    obsolete: frozenset[str] = frozenset()
    lines: Mapping[Edge, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for edge in self.edges:
            child, relation, parent = edge
            if child not in self.names or parent not in self.names:
                stranger = parent if child in self.names else child
                raise UserError(
                    f"{self._where(edge)}: expected relations between terms of this file, found '{child} "
                    f"{relation} {parent}' without a term {stranger}; fetch the whole file again."
                )

    @cached_property
    def ids(self) -> list[str]:
        """All terms, sorted; a term's position is its index in :meth:`closure`."""
        return sorted(self.names)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each term in :attr:`ids`."""
        return {term: i for i, term in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.names)

    def closure(self, relations: Iterable[str] = GROUPING) -> sparse.csr_matrix:
        """Strict ancestors over some relations: bool, shape (T, T), ``[t, a]``: ``t`` has ancestor ``a``.

        Raises
        ------
        UserError
            If a term is its own ancestor.
        """
        wanted = set(relations)
        pairs = {(self.index[c], self.index[p]) for c, relation, p in self.edges if relation in wanted}
        child, parent = np.array(sorted(pairs), np.int64).reshape(-1, 2).T
        shape = (len(self), len(self))
        parents = sparse.csr_matrix((np.ones(len(child), bool), (child, parent)), shape=shape)
        reached = frontier = parents
        while frontier.nnz:  # one generation per step, only from the ancestors that the last step found
            frontier = (frontier @ parents > reached).astype(bool)
            reached = (reached + frontier).astype(bool)
        if reached.diagonal().any():
            raise self._cycle(reached, parents, wanted)
        return reached

    def ancestry(self, terms: Sequence[str], relations: Iterable[str] = GROUPING) -> sparse.csr_matrix:
        """Ancestors among some terms: bool, shape (n, n), as in :meth:`closure`.

        Terms are also found by an alternate identifier. A term that is not in the ontology has no ancestors.

        Raises
        ------
        UserError
            If none of the terms is in the ontology.
        """
        at = np.array([self.index.get(self.alternates.get(term, term), -1) for term in terms], np.int64)
        known = np.flatnonzero(at >= 0)
        if len(terms) and not len(known):
            raise UserError(
                f"{self.source}: expected an ontology of the given pathways, found none of their ids in it "
                f"(they look like '{terms[0]}', its terms like '{self.ids[0]}'); give the ontology that the "
                "pathways were made from, or keep ancestors."
            )
        part = self.closure(relations)[at[known]][:, at[known]].tocoo()
        return sparse.csr_matrix(
            (np.ones(part.nnz, bool), (known[part.row], known[part.col])), shape=(len(terms), len(terms))
        )

    def _where(self, edge: Edge) -> str:
        line = self.lines.get(edge)
        return self.source if line is None else f"{self.source}, line {line}"

    def _cycle(self, reached: sparse.csr_matrix, parents: sparse.csr_matrix, wanted: set[str]) -> UserError:
        """Name the shortest cycle of the first term that is on one."""
        start = int(np.flatnonzero(reached.diagonal())[0])
        came_from: dict[int, int] = {}
        layer, found = [start], False
        while not found:
            above = [(int(p), node) for node in layer for p in parents[node].indices]
            layer = []
            for p, node in above:
                if p not in came_from:
                    came_from[p] = node
                    layer.append(p)
            found = start in came_from
        path, node = [start], came_from[start]
        while node != start:
            path.append(node)
            node = came_from[node]
        path.append(start)
        names = [self.ids[node] for node in reversed(path)]
        first = next(e for e in self.edges if (e[0], e[2]) == (names[0], names[1]) and e[1] in wanted)
        return UserError(
            f"{self._where(first)}: expected an acyclic ontology, found the cycle {' → '.join(names)}; "
            "fix one of these relations or fetch the file again."
        )


def read_obo(path: str | Path, aspect: Aspect = "P") -> Ontology:
    """Read one of the three ontologies from an OBO file, plain or gzipped.

    Parameters
    ----------
    aspect
        ``P``: biological process, ``F``: molecular function, ``C``: cellular component. Relations to
        terms of another aspect are left out, as in ``go-basic.obo``.

    Raises
    ------
    UserError
        If the file is missing, malformed, truncated inside a stanza, has no such terms, or a relation refers
        to an unknown term.
    """
    import obonet  # imports networkx, which is slow; imported here because few commands need it

    text = read_text(path, "file in OBO format", "an OBO file such as go-basic.obo")
    lines = _scan(text, str(path))
    # obonet expects a blank line at the end of a stanza; in the format the next header ends it as well
    text = re.sub(r"\n(?=\[)", "\n\n", text)
    try:
        graph = obonet.read_obo(io.StringIO(text), ignore_obsolete=False)
    except ValueError as error:
        raise UserError(
            f"{path}: expected an OBO file, found one that cannot be parsed ({_one_line(error)}); fetch the "
            "file again."
        ) from None
    nodes: dict[str, dict[str, Any]] = dict(graph.nodes(data=True))
    default = graph.graph.get("default-namespace", "")
    default = default[0] if isinstance(default, list) else default
    living = {term for term, about in nodes.items() if _is_term(about) and not _is_obsolete(about)}
    space = {term: nodes[term].get("namespace", default) for term in living}
    chosen = {term for term in living if space[term] == NAMESPACES[aspect]}
    if not chosen:
        raise UserError(
            f"{path}: expected an OBO file with terms of the namespace {NAMESPACES[aspect]}, found "
            f"{len(living)} terms and none of them in it; give a whole ontology such as go-basic.obo."
        )
    edges = sorted(
        (child, relation, parent)
        for child, parent, relation in graph.edges(keys=True)
        # an edge to an unknown term is kept here; Ontology refuses it with a message
        if child in chosen and (parent in chosen or parent not in living)
    )
    alternates, obsolete = _former_ids(nodes, living)
    return Ontology(
        names={term: nodes[term]["name"] for term in sorted(chosen)},
        edges=edges,
        source=str(path),
        release=str(graph.graph.get("data-version", "")).removeprefix("releases/"),
        alternates={old: new for old, new in alternates.items() if new in chosen},
        obsolete=obsolete,
        lines=lines,
    )


def _is_term(about: Mapping[str, Any]) -> bool:
    """Whether a node of obonet's graph has a stanza; others only occur as ends of edges."""
    return "name" in about


def _is_obsolete(about: Mapping[str, Any]) -> bool:
    result: bool = about.get("is_obsolete", "false") == "true"
    return result


def _former_ids(
    nodes: Mapping[str, Mapping[str, Any]], living: set[str]
) -> tuple[dict[str, str], frozenset[str]]:
    """Former identifiers with a unique successor, and obsolete ones without."""
    alternates, obsolete = {}, set()
    for term, about in nodes.items():
        if term in living:
            alternates.update(dict.fromkeys(about.get("alt_id", ()), term))
        elif _is_term(about):
            successors = [new for new in about.get("replaced_by", ()) if new in living]
            if len(successors) == 1:
                alternates[term] = successors[0]
            else:
                obsolete.add(term)
    return alternates, frozenset(obsolete)


def _scan(text: str, path: str) -> dict[Edge, int]:
    """Check the stanzas line by line, and return the line of each relation, which obonet does not keep."""
    edges: dict[Edge, int] = {}
    first: dict[str, int] = {}
    kind, term, named, opened = "", "", False, 0

    def close() -> None:
        missing = "id" if not term else "name"
        if kind == "[Term]" and not (term and named):
            raise UserError(
                f"{path}, line {opened}: expected a term with id and name, found one without {missing}; the "
                "file may be cut off here, fetch it again."
            )

    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.startswith("!"):
            continue
        if line.startswith("["):
            close()
            if not re.fullmatch(r"\[\w+\]\s*", line):
                raise _malformed(path, number, "a stanza header such as [Term]", line)
            kind, term, named, opened = line.strip(), "", False, number
            continue
        tag, colon, value = line.partition(":")
        if not colon or not tag or not value.strip():
            raise _malformed(path, number, "a line 'tag: value'", line)
        if kind != "[Term]":
            continue
        value = re.split(r"\s[!{]", value, maxsplit=1)[0].strip()
        if tag == "id":
            if term or value in first:
                other = f"a second id of {term}" if term else f"{value} again (first on line {first[value]})"
                raise UserError(f"{path}, line {number}: expected unique terms, found {other}; fix the file.")
            term, first[value] = value, number
        elif tag == "name":
            named = True
        elif tag in ("is_a", "relationship"):
            relation, _, parent = f"is_a {value}".partition(" ") if tag == "is_a" else value.partition(" ")
            if not term or not parent or " " in parent:
                raise _malformed(path, number, "'is_a: TERM' or 'relationship: TYPE TERM' below an id", line)
            edges[term, relation, parent] = number
    close()
    if not first:
        raise UserError(f"{path}: expected an OBO file with [Term] stanzas, found none; give go-basic.obo.")
    return edges


def _malformed(path: str, number: int, expected: str, line: str) -> UserError:
    return UserError(
        f"{path}, line {number}: expected {expected}, found '{line.strip()[:60]}'; fix the line or fetch "
        "the file again."
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
