"""``tadvae pathways select`` and ``build``: read pathways, filter them, and write one file."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tadvae.base.errors import UserError
from tadvae.genes.reference import GeneReference
from tadvae.pathway_selection.annotations import gene_sets, parse_evidence, read_gaf
from tadvae.pathway_selection.coverage import measured_of
from tadvae.pathway_selection.ontology import Aspect, Ontology, read_obo, relations
from tadvae.pathway_selection.provenance import GO_LICENCE, provenance, source, write_beside
from tadvae.pathway_selection.selection import Ancestry, Replicability, Selection, SelectionConfig, select
from tadvae.pathways.default import FILE, packaged
from tadvae.pathways.gmt import write_gmt
from tadvae.pathways.measured import Measured
from tadvae.pathways.membership import MIN_MEASURED
from tadvae.pathways.read import read_pathways
from tadvae.pathways.sets import PathwaySets
from tadvae.pathways.table import PathwayTable, read_parquet
from tadvae.pathways.textfile import read_text
from tadvae.store.reader import Store

FORMATS = (".parquet", ".gmt", ".gmt.gz")


@dataclass(frozen=True)
class SelectionJob:
    """Sources of pathways, and the genes that are measured.

    Attributes
    ----------
    source
        A pathway file of any format; None: ontology and annotations if given, else the packaged default.
    obo, gaf
        Files of the ontology, and of the annotations to group along it.
    evidence, aspect
        Evidence codes and aspect (``P``, ``F``, ``C``) of the annotations to use.
    store
        Folder or URL of the store whose panels define the measured genes.
    genes
        A file with one measured gene per line, instead of a store.
    reference
        Gene reference: ``human``, ``none`` or a gene table; None: that of the store, or ``human``.
    replicability
        Settings of :class:`tadvae.pathway_selection.replicability.ReplicabilityConfig`.
    """

    source: str | None = None
    obo: str | None = None
    gaf: str | None = None
    evidence: str = "all"
    aspect: Aspect = "P"
    store: str | None = None
    genes: str | None = None
    reference: str | None = None
    replicability: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Read:
    sets: PathwaySets
    ancestry: Ancestry | None
    sources: list[dict[str, str]]
    settings: dict[str, Any]
    licence: str


def select_pathways(job: SelectionJob, config: SelectionConfig, out: str) -> tuple[PathwayTable, Selection]:
    """Select pathways and write them; return the written table, and the effect of the filters.

    Raises
    ------
    UserError
        For bad input; nothing is written then.
    """
    if not out.lower().endswith(FORMATS):
        raise UserError(
            f"{out}: expected an output file ending in {', '.join(FORMATS)}, found another suffix; name one "
            "of these."
        )
    if job.store is not None and job.genes is not None:
        raise UserError(
            "expected either a store or a list of genes, found both; leave out --store or --genes."
        )
    store = Store.open(job.store) if job.store is not None else None
    if config.min_replicability is not None and store is None:
        raise UserError(
            "expected a store to train on for replicability, found none; name one with --store, or leave out "
            "--min-replicability."
        )
    read = _read(job, config)
    measured = measured_of(store) if store is not None else _measured_list(job.genes)
    reference = _reference(job, store)
    with _replicability(job, config, store) as score:
        selection = select(read.sets, config, measured=measured, ancestry=read.ancestry, replicability=score)
    settings = dict(read.settings)
    if store is not None:
        settings["store_vocabulary"] = store.manifest.vocabulary_hash
    if config.min_replicability is not None:
        settings["replicability"] = job.replicability
    sources = read.sources + ([source(job.genes)] if job.genes is not None else [])
    table = PathwayTable.of(
        selection.sets,
        reference,
        read.ancestry(selection.sets.ids) if read.ancestry is not None else None,
        selection.replicability,
        provenance(sources, config, selection.reports, settings, read.licence),
    )
    if out.lower().endswith(".parquet"):
        table.write(out)
    else:
        write_gmt(table.sets(), out)
        write_beside(table.provenance, out)
    return table, selection


def _read(job: SelectionJob, config: SelectionConfig) -> _Read:
    """Read the sets, and the ontology that defines their ancestors."""
    closed = relations(config.regulates)
    ontology: Ontology | None = None
    sources = []
    if job.obo is not None:
        ontology = read_obo(job.obo, job.aspect)
        sources.append(source(job.obo, ontology.release))
    ancestry: Ancestry | None = partial(ontology.ancestry, relations=closed) if ontology is not None else None
    if job.gaf is not None:
        if ontology is None or job.source is not None:
            raise UserError(
                f"{job.gaf}: expected annotations together with an ontology and no other source, found "
                f"{'no ontology' if ontology is None else job.source}; give --obo and --gaf alone."
            )
        annotations = read_gaf(job.gaf, job.aspect, parse_evidence(job.evidence))
        sources.append(source(job.gaf, annotations.release))
        settings: dict[str, Any] = {"aspect": job.aspect, "evidence": job.evidence, "relations": list(closed)}
        settings["annotations_left_out"] = annotations.left_out
        return _Read(gene_sets(ontology, annotations, closed), ancestry, sources, settings, GO_LICENCE)
    if job.source is None:
        if ontology is not None:
            raise UserError(
                f"{job.obo}: expected pathways in addition to the ontology, found none; add --gaf FILE, or "
                "name a pathway file."
            )
        table = packaged()
        licence = table.provenance.get("licence", "")
        return _Read(table.sets(), table.ancestry, [{"file": FILE}], {"made_from": table.provenance}, licence)
    sources.append(source_of(job.source))
    if job.source.lower().endswith(".parquet"):
        table = read_parquet(job.source)
        return _Read(
            table.sets(),
            ancestry or table.ancestry,
            sources,
            {"made_from": table.provenance},
            table.provenance.get("licence", ""),
        )
    return _Read(read_pathways(job.source), ancestry, sources, {}, "")


def source_of(path: str) -> dict[str, str]:
    """Provenance of a file; a missing file is reported later, by its reader."""
    return source(path) if Path(path).is_file() else {"file": Path(path).name}


def _measured_list(path: str | None) -> Measured | None:
    if path is None:
        return None
    lines = read_text(path, "list of genes, one per line", "a text file").split("\n")
    names = {line.strip() for line in lines if line.strip()}
    if not names:
        raise UserError(f"{path}: expected one gene per line, found none; list the measured genes.")
    return Measured.of_names(names, Path(path).name)


def _reference(job: SelectionJob, store: Store | None) -> GeneReference:
    if job.reference is None and store is not None:
        return store.gene_reference
    return GeneReference.load(job.reference or "human")


@contextmanager
def _replicability(
    job: SelectionJob, config: SelectionConfig, store: Store | None
) -> Iterator[Replicability | None]:
    """Yield a function that scores sets by parallel Ray tasks; None if the config does not need it."""
    if config.min_replicability is None or store is None:
        yield None
        return
    from pipelines.cluster.connection import ray_map, ray_session
    from tadvae.pathway_selection.replicability import ReplicabilityConfig, replicability_on_store

    settings = ReplicabilityConfig.parse(job.replicability, "replicability")
    least = config.min_measured or MIN_MEASURED

    def score(sets: PathwaySets) -> np.ndarray:
        by_dataset = replicability_on_store(store, sets, settings, least, ray_map).to_numpy()
        return np.where(np.isnan(by_dataset), -np.inf, by_dataset).max(axis=1)  # the best of the datasets

    with ray_session(min_cpus=1):
        yield score
