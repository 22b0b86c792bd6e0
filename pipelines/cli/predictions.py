"""``tadvae predict``, ``embed`` and ``rank``: what a trained model says about perturbations and cells."""

from typing import Annotated, Literal

import typer

from pipelines.cli.arguments import OnGpu, RunArgument
from pipelines.cli.show import out
from tadvae.base.errors import UserError


def predict(
    run: RunArgument,
    out_: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="FILE.h5ad|FILE.parquet",
            help="File for the cells under one perturbation in one context (.h5ad), or for mean profiles.",
        ),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A+B", help="Target of the perturbation, or several joined by +; may be repeated."
        ),
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(
            metavar="C",
            help="Context (cell line or cell type) to predict in; may be repeated. Without it, mean profiles "
            "in all contexts.",
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Text file of perturbations, one (A+B) per line: their mean profiles."
        ),
    ] = None,
    all_singles: Annotated[
        bool,
        typer.Option("--all-singles", help="Mean profiles of every single target of each context's screen."),
    ] = False,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Mean profiles of every pair of these targets.")
    ] = False,
    as_: Annotated[
        Literal["log1p", "counts"],
        typer.Option("--as", help="Whether predictions are log1p values or counts."),
    ] = "log1p",
    controls: Annotated[
        str | None,
        typer.Option(metavar="FILE.h5ad", help="Your own control cells, which predictions start from."),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="Dataset of the context and of the modality, if several have it; may be repeated for means."
        ),
    ] = None,
    values: Annotated[
        Literal["counts", "log1p"], typer.Option(help="Whether --controls holds counts or log1p values.")
    ] = "counts",
    page: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.html",
            help="HTML page of one perturbation in one context: genes and pathways that change.",
        ),
    ] = None,
    dose: Annotated[
        float | None,
        typer.Option(
            help="Dose of the perturbations, in the unit of the screens; default: the largest seen."
        ),
    ] = None,
    time: Annotated[
        float | None,
        typer.Option(
            help="Time after the perturbations, in the unit of the screens; default: the largest seen."
        ),
    ] = None,
    gpu: OnGpu = False,
) -> None:
    """Predict cells under one perturbation, or mean profiles under many.

    One --target in one --context, written to an .h5ad file, gives predicted cells. Everything else gives one
    row per perturbation and context: the mean profile with its standard error, of ensembles with intervals,
    or the reason why there is none.

    Example: tadvae predict run --target KLF1+MAP2K6 --context k562 --out predicted.h5ad

    Example: tadvae predict run --all-singles --all-pairs --context k562 --out pairs.parquet
    """
    many = targets is not None or all_singles or all_pairs
    if not target and not many:
        raise UserError("predict: no perturbation; give --target, --targets, --all-singles or --all-pairs.")
    one = len(target or ()) == len(context or ()) == 1 and len(dataset or ()) <= 1 and not many
    if one and target and context and not out_.endswith(".parquet"):
        from pipelines.predict import predict_to

        adata = predict_to(
            run,
            target[0],
            context[0],
            out_,
            controls_path=controls,
            dataset=dataset[0] if dataset else None,
            values=values,
            units=as_,
            page=page,
            dose=dose,
            time=time,
            gpu=gpu,
        )
        about = adata.uns["tadvae"]
        change = (adata.var["predicted_mean"] - adata.var["control_mean"]).sort_values()
        up = ", ".join(f"{gene} {value:+.2f}" for gene, value in change.iloc[::-1].head(5).items())
        down = ", ".join(f"{gene} {value:+.2f}" for gene, value in change.head(5).items())
        out.print(
            f"{out_}: {adata.n_obs} cells × {adata.n_vars} genes of {about['perturbation']} in "
            f"{about['context']}, from {about['started_from']}; up: {up}; down: {down}."
        )
        return
    if page is not None:
        raise UserError(
            "--page shows one perturbation in one context: give one --target, one --context, and a file "
            ".h5ad with --out."
        )
    from pipelines.predict import predict_many_to
    from tadvae.model.combinations import Combinations, read_targets

    listed = (*(target or ()), *(read_targets(targets) if targets is not None else ()))
    written = predict_many_to(
        run,
        Combinations(listed, all_singles, all_pairs, (dose, time)),
        out_,
        contexts=context,
        datasets=dataset,
        controls_path=controls,
        values=values,
        units=as_,
        gpu=gpu,
    )
    out.print(
        f"{out_}: {written.n:,} mean profiles × {written.n_genes:,} genes (contexts: {written.n_contexts}); "
        f"{sum(written.reasons.values()):,} without an answer."
    )
    for reason, count in written.reasons.most_common(3):
        out.print(f"{count:,} × {reason}")


def embed(
    run: RunArgument,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE.h5ad…", help="Files of cells, of any panels; .h5ad or .zarr."),
    ],
    out_: Annotated[str, typer.Option("--out", metavar="OUT.h5ad", help="File to write.")],
    contributions: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATHWAY", help="Write the contribution of each gene to this pathway; may be repeated."
        ),
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Layer with the values; default: X.")] = None,
    values: Annotated[
        Literal["counts", "log1p"], typer.Option(help="Whether the files hold counts or log1p values.")
    ] = "counts",
    smooth: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Principal axes of each file onto which cells are projected before; 0: none. Default: 20 "
            "where the pathway layer is linear.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Number of processes, each with one thread and a copy of the model.")
    ] = 1,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="OBS",
            help="Column of obs with the batch of each cell (tadvae_file: the file): each batch is moved so "
            "that its control cells have the mean of all control cells.",
        ),
    ] = None,
    controls: Annotated[
        str | None,
        typer.Option(metavar="OBS=value", help="The control cells, for --batch; default: all cells."),
    ] = None,
    gpu: OnGpu = False,
) -> None:
    """Write pathway activities and latent means of the cells of files, in bounded memory.

    Example: tadvae embed run cells.h5ad --out embedded.h5ad
    """
    from pipelines.embed import embed_to

    found = embed_to(
        run,
        files,
        out_,
        contributions=contributions or (),
        layer=layer,
        values=values,
        smooth=smooth,
        workers=workers,
        batch=batch,
        controls=controls,
        gpu=gpu,
    )
    available = found.uns["tadvae"]["available"]
    out.print(
        f"{out_}: {found.n_obs:,} cells of {len(files)} files; {int(available.any(axis=0).sum())} of "
        f"{available.shape[1]} pathways are measured by at least one file."
    )


def rank(
    run: RunArgument,
    towards: Annotated[
        str,
        typer.Option(
            metavar="STATE.h5ad|OBS=value",
            help="Cells in the wanted state: a file, or those of --cells with a value in a column of obs.",
        ),
    ],
    out_: Annotated[
        str, typer.Option("--out", metavar="FILE.csv|FILE.parquet", help="File for the ranked table.")
    ],
    page: Annotated[
        str | None,
        typer.Option(metavar="FILE.html", help="HTML page with the answer, a chart and the table."),
    ] = None,
    cells: Annotated[
        str | None, typer.Option(metavar="FILE.h5ad", help="File in which OBS=value is looked up.")
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="OBS=value", help="The control cells in --cells, to start from."),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(metavar="C", help="Context of training whose control cells predictions start from."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Dataset of the context, or whose way of perturbing is meant.")
    ] = None,
    controls: Annotated[
        str | None, typer.Option(metavar="FILE.h5ad", help="Your own control cells, to start from.")
    ] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Rank all pairs of targets too, not only single targets.")
    ] = False,
    targets: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Rank the perturbations of a text file, one (A+B) per line, instead."
        ),
    ] = None,
    score: Annotated[
        Literal["energy", "cosine"],
        typer.Option(help="How far (energy), or in which direction (cosine), cells move."),
    ] = "energy",
    top: Annotated[int, typer.Option(min=1, help="Number of perturbations in the table.")] = 1_000,
    values: Annotated[
        Literal["counts", "log1p"], typer.Option(help="Whether the files hold counts or log1p values.")
    ] = "counts",
    gpu: OnGpu = False,
) -> None:
    """Rank perturbations by how far they move control cells towards a wanted state.

    Example: tadvae rank run --towards erythroid.h5ad --context k562 --pairs --out rank.csv --page rank.html

    Example: tadvae rank run --cells mine.h5ad --from state=naive --towards state=memory --out rank.csv
    """
    from pipelines.rank import rank_to
    from tadvae.model.combinations import Combinations, read_targets
    from tadvae.report.ranking_page import answer

    if targets is not None and pairs:
        raise UserError("--targets lists the perturbations; leave out --pairs.")
    listed = Combinations((), True, pairs) if targets is None else Combinations(read_targets(targets))
    ranking = rank_to(
        run,
        towards,
        out_,
        listed,
        page=page,
        cells=cells,
        from_=from_,
        context=context,
        dataset=dataset,
        controls=controls,
        values=values,
        score=score,
        top=top,
        gpu=gpu,
    )
    out.print(f"{out_}: {answer(ranking, towards)}")
