"""``tadvae pathways``: select pathways, build them from a GO release, and show which a store can see."""

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tadvae.base.errors import UserError
from tadvae.base.terminal import print_text, visible

if TYPE_CHECKING:
    from pipelines.pathways import SelectionJob
    from tadvae.pathway_selection.selection import SelectionConfig
    from tadvae.pathways.sets import PathwaySets

pathways_app = typer.Typer(
    help="Select pathways, build them from a GO release, show and list them.", no_args_is_help=True
)

NEEDED = 5  # tadvae.pathways.membership.MIN_MEASURED, whose import would slow every --help
Preset = Annotated[
    Literal["netactivity", "paper", "packaged", "none"],
    typer.Option(
        help="Filters to start from: those of NetActivity, of the paper, or of the packaged default; or none."
    ),
]
Out = Annotated[
    str, typer.Option("--out", metavar="FILE", help="File to write: .parquet (recommended), .gmt or .gmt.gz.")
]
Evidence = Annotated[
    str,
    typer.Option(
        help="Evidence codes of annotations: all, curated, experimental, or a list such as IDA,IMP."
    ),
]
AspectOption = Annotated[
    Literal["P", "F", "C"],
    typer.Option(help="P: biological process, F: molecular function, C: cellular component."),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="STORE",
        help="Folder or URL of a cell store, whose panels define the measured genes.",
    ),
]
Genes = Annotated[
    str | None, typer.Option(metavar="FILE", help="File of measured genes, one per line, instead of a store.")
]
Reference = Annotated[
    str | None,
    typer.Option(metavar="human|none|TABLE", help="Gene reference; default: that of the store, or human."),
]
MinGenes = Annotated[int | None, typer.Option(min=1, help="Smallest number of genes of a pathway.")]
MaxGenes = Annotated[
    int | None, typer.Option(min=0, help="Largest number of genes of a pathway; 0: no limit.")
]
Redundancy = Annotated[
    Literal["jaccard", "overlap", "none"] | None,
    typer.Option(help="How overlapping pathways are removed."),
]
Bound = Annotated[
    float | None,
    typer.Option(help="For jaccard the distance of the cut, for overlap the largest share of common genes."),
]
MinMeasured = Annotated[
    int | None,
    typer.Option(min=0, help="Measured genes that a pathway needs in at least one dataset; 0: no limit."),
]
Ancestors = Annotated[
    bool | None,
    typer.Option("--ancestors/--no-ancestors", help="Whether to keep ancestors of selected terms."),
]
Regulates = Annotated[
    bool | None,
    typer.Option(
        "--regulates/--no-regulates",
        help="Whether ancestors also follow regulates, in addition to is_a and part_of.",
    ),
]
MinReplicability = Annotated[
    float | None,
    typer.Option(
        help="Train the pathway layer on the store several times, and keep pathways with a replicability "
        "above this value; published: 0.7."
    ),
]
Runs = Annotated[int, typer.Option(min=2, help="Number of trainings for replicability.")]
MaxCells = Annotated[int, typer.Option(min=2, help="Largest number of cells per dataset for replicability.")]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Cells per training step for replicability; use fewer for a small dataset.")
]
Cells = Annotated[Literal["all", "controls"], typer.Option(help="Cells to train on for replicability.")]
PathwaysOption = Annotated[
    str | None,
    typer.Option("--pathways", metavar="FILE", help="Pathway file; default: the packaged pathways."),
]


@pathways_app.command("select")
def select(
    out: Out,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help="Pathway file: GMT, two-column table or Parquet; default: the packaged pathways.",
        ),
    ] = None,
    preset: Preset = "netactivity",
    obo: Annotated[
        str | None, typer.Option(metavar="FILE", help="Ontology in OBO format, such as go-basic.obo.")
    ] = None,
    gaf: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Annotations to group along the ontology (.gaf, .gaf.gz)."),
    ] = None,
    evidence: Evidence = "all",
    aspect: AspectOption = "P",
    store: StoreOption = None,
    genes: Genes = None,
    reference: Reference = None,
    min_genes: MinGenes = None,
    max_genes: MaxGenes = None,
    redundancy: Redundancy = None,
    bound: Bound = None,
    min_measured: MinMeasured = None,
    ancestors: Ancestors = None,
    regulates: Regulates = None,
    min_replicability: MinReplicability = None,
    runs: Runs = 6,
    max_cells: MaxCells = 10_000,
    batch_size: BatchSize = 128,
    cells: Cells = "all",
) -> None:
    """Filter pathways, report what each filter removes and why, and write one file with provenance.

    Example: tadvae pathways select --obo go-basic.obo --gaf goa_human.gaf.gz --out go.parquet
    """
    from pipelines.pathways import SelectionJob

    job = SelectionJob(
        source,
        obo,
        gaf,
        evidence,
        aspect,
        store,
        genes,
        reference,
        _replicability(runs, max_cells, batch_size, cells),
    )
    config = _config(
        preset, min_genes, max_genes, redundancy, bound, min_measured, ancestors, regulates, min_replicability
    )
    _run(job, config, out)


@pathways_app.command("build")
def build(
    out: Out,
    release: Annotated[
        str, typer.Option(metavar="latest|DATE", help="Release of the Gene Ontology.")
    ] = "latest",
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="TADVAE_GO_URL",
            help="Address of a mirror with the folders ontology/ and annotations/.",
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Folder for downloads; default: the user's cache."),
    ] = None,
    preset: Preset = "packaged",
    evidence: Evidence = "all",
    aspect: AspectOption = "P",
    store: StoreOption = None,
    genes: Genes = None,
    reference: Reference = None,
    min_genes: MinGenes = None,
    max_genes: MaxGenes = None,
    redundancy: Redundancy = None,
    bound: Bound = None,
    min_measured: MinMeasured = None,
    ancestors: Ancestors = None,
    regulates: Regulates = None,
    min_replicability: MinReplicability = None,
    runs: Runs = 6,
    max_cells: MaxCells = 10_000,
    batch_size: BatchSize = 128,
    cells: Cells = "all",
) -> None:
    """Download a GO release (ontology and human annotations) and select from it.

    Example: tadvae pathways build --release latest --out go.parquet
    """
    import pooch

    from pipelines.pathways import SelectionJob
    from tadvae.pathway_selection.release import fetch_release

    config = _config(
        preset, min_genes, max_genes, redundancy, bound, min_measured, ancestors, regulates, min_replicability
    )
    folder = cache or str(pooch.os_cache("tadvae") / "go")
    obo, gaf = fetch_release(folder, release, url=url)
    print_text(f"fetched: {obo}, {gaf}")
    job = SelectionJob(
        None,
        str(obo),
        str(gaf),
        evidence,
        aspect,
        store,
        genes,
        reference,
        _replicability(runs, max_cells, batch_size, cells),
    )
    _run(job, config, out)


@pathways_app.command("show")
def show(
    term: Annotated[str, typer.Argument(metavar="TERM", help="Id or name of a pathway.")],
    pathways: PathwaysOption = None,
    store: StoreOption = None,
    min_measured: Annotated[
        int, typer.Option(min=1, help="Measured genes that a pathway needs to be visible.")
    ] = NEEDED,
) -> None:
    """Show the genes of a pathway and, with a store, which datasets can see it.

    Example: tadvae pathways show GO:0006954 --store store
    """
    from tadvae.pathway_selection.coverage import describe_set, measured_of
    from tadvae.store.reader import Store

    sets = _sets(pathways)
    row = _find(sets, term)
    genes = sets.genes[row]
    print_text(f"{sets.ids[row]} {sets.names[row]}: {len(genes)} genes, from {sets.source}")
    print_text(", ".join(genes))
    if store is not None:
        for sentence in describe_set(sets, row, measured_of(Store.open(store)), min_measured):
            print_text(sentence)


@pathways_app.command("list")
def list_(
    pathways: PathwaysOption = None,
    store: StoreOption = None,
    min_measured: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Measured genes that a pathway needs to be visible; default: {NEEDED}; needs --store.",
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also list pathways that no dataset can see.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List pathways and, with a store, how many of their genes each dataset measures.

    Example: tadvae pathways list --store store --min-measured 5
    """
    import numpy as np

    from tadvae.pathway_selection.coverage import Visibility, measured_of
    from tadvae.store.reader import Store

    sets = _sets(pathways)
    if store is None:
        if min_measured is not None:
            raise UserError(
                "--min-measured counts measured genes: expected a store, found none; add --store."
            )
        rows = [{"pathway": i, "name": n, "genes": len(g)} for i, n, g in _rows(sets)]
        _print_rows(rows, as_json, [f"{len(rows):,} pathways of {sets.source}."])
        return
    view = Visibility.of(
        sets, measured_of(Store.open(store)), NEEDED if min_measured is None else min_measured
    )
    listed = np.asarray(view.seen.any(axis=0)) | everything
    rows = [
        {
            "pathway": key,
            "name": name,
            "genes": len(genes),
            **{d: int(n) for d, n in zip(view.datasets, view.measured[:, p], strict=True)},
        }
        for p, (key, name, genes) in enumerate(_rows(sets))
        if listed[p]
    ]
    _print_rows(rows, as_json, view.sentences())


def _run(job: "SelectionJob", config: "SelectionConfig", out: str) -> None:
    from pipelines.pathways import select_pathways

    table, selection = select_pathways(job, config, out)
    for report in selection.reports:
        print_text(report)
    genes = {
        pair for part in zip(table.symbols, table.ensembl, strict=True) for pair in zip(*part, strict=True)
    }
    edges = sum(map(len, table.symbols))
    print_text(f"{out}: {len(table):,} pathways, {len(genes):,} genes, {edges:,} memberships.")


def _config(
    preset: str,
    min_genes: int | None,
    max_genes: int | None,
    redundancy: str | None,
    bound: float | None,
    min_measured: int | None,
    ancestors: bool | None,
    regulates: bool | None,
    min_replicability: float | None,
) -> "SelectionConfig":
    """The preset with the options of the command line."""
    from tadvae.pathway_selection.selection import PRESETS, SelectionConfig

    given: dict[str, Any] = {
        "min_genes": min_genes,
        "max_genes": max_genes,
        "redundancy": redundancy,
        "bound": bound,
        "min_measured": min_measured,
        "remove_ancestors": None if ancestors is None else not ancestors,
        "regulates": regulates,
        "min_replicability": min_replicability,
    }
    settings = PRESETS[preset].model_dump() | {
        key: value for key, value in given.items() if value is not None
    }
    for key in ("max_genes", "min_measured"):
        settings[key] = settings[key] or None
    return SelectionConfig.parse(settings, f"preset {preset} with these options")


def _replicability(runs: int, max_cells: int, batch_size: int, cells: str) -> dict[str, Any]:
    return {"runs": runs, "max_cells": max_cells, "cells": cells, "training": {"batch_size": batch_size}}


def _sets(path: str | None) -> "PathwaySets":
    from tadvae.pathways.default import packaged
    from tadvae.pathways.read import read_pathways

    return packaged().sets() if path is None else read_pathways(path)


def _rows(sets: "PathwaySets") -> list[tuple[str, str, list[str]]]:
    return list(zip(sets.ids, sets.names, sets.genes, strict=True))


def _find(sets: "PathwaySets", term: str) -> int:
    """Row of a pathway by id or name; an unknown one is a UserError that suggests similar names."""
    import difflib

    wanted = term.strip().lower()
    for column in (sets.ids, sets.names):
        for row, value in enumerate(column):
            if value.lower() == wanted:
                return row
    names = {name.lower(): f"{key} {name}" for key, name, _ in _rows(sets)}
    within = [text for name, text in names.items() if wanted and wanted in name]
    near = within or [names[name] for name in difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)]
    hint = f"; similar are {', '.join(near[:3])}" if near else ""
    raise UserError(
        f"{sets.source}: expected the id or name of one of its {len(sets):,} pathways, found '{term}'{hint}; "
        "see `tadvae pathways list`."
    )


def _print_rows(rows: list[dict[str, Any]], as_json: bool, sentences: list[str]) -> None:
    if as_json:
        print_text(json.dumps({"pathways": rows, "summary": sentences}, indent=1))
        return
    if rows:
        print_text("\t".join(rows[0]))
    for row in rows:
        print_text("\t".join(visible(str(value)) for value in row.values()))
    for sentence in sentences:
        print_text(sentence)
