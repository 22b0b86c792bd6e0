"""``tadvae evaluate --cell-eval FOLDER``: predicted and measured cells for cell-eval, and its scores.

cell-eval (Adduri et al. 2025) is a package of its own: ``pip install 'tadvae[cell-eval]'``. Without it the
files are written all the same, and can be scored elsewhere.
"""

import importlib.util
import re
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from rich.table import Table
from scipy import sparse

from tadvae.base.errors import UserError
from tadvae.evaluation.answers import Answer
from tadvae.evaluation.questions import Question

COLUMN, CONTROL = "perturbation", "control"
REAL, PREDICTED, RESULTS = "real.h5ad", "pred.h5ad", "results.csv"


class CellEvalFolder:
    """One subfolder per (dataset, context) with ``real.h5ad`` and ``pred.h5ad``.

    Values are log-normalised as in training; columns are the store's gene identifiers, but a perturbed gene
    has the name of its target, by which cell-eval leaves it out of some scores. Both files have the control
    cells that predictions start from;
    predicted values below zero, which cell-eval refuses, are written as zero.

    Parameters
    ----------
    folder
        A new or empty folder on this machine.

    Raises
    ------
    UserError
        If the folder has files or is a URL.
    """

    def __init__(self, folder: str) -> None:
        if "://" in folder:
            raise UserError(
                f"--cell-eval {folder}: expected a folder on this machine, found a URL; name a path."
            )
        self.folder = Path(folder).expanduser()
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(
                f"--cell-eval {folder}: expected a new or empty folder, found files; name another one."
            )
        self.places: list[Path] = []

    def keep(self, question: Question, answer: Answer) -> None:
        """Write the cells of one (dataset, context); nothing of a dataset without cells."""
        if not question.has_cells:
            return
        row = question.groups.iloc[0]
        name = re.sub(r"\W+", "_", f"{row['dataset_name']}-{row['context_name']}")
        place = self.folder / f"{len(self.places)}-{name}"
        place.mkdir(parents=True)
        controls = question.controls.dense(question.genes)
        names = question.groups["perturbation_name"].tolist()
        target = {gene: name for name, gene in question.profiles.target_gene.items() if gene is not None}
        genes = [target.get(gene, gene) for gene in question.profiles.genes]
        observed = [cells.dense(question.genes) for cells in question.cells]
        predicted = [np.maximum(cells, 0.0) for cells in answer.cells]
        for file, parts in ((REAL, observed), (PREDICTED, predicted)):
            labels = np.repeat([CONTROL, *names], [len(controls), *map(len, parts)])
            adata = ad.AnnData(
                sparse.csr_matrix(np.concatenate([controls, *parts]), dtype=np.float32),
                obs=pd.DataFrame({COLUMN: pd.Categorical(labels)}, index=_numbered("cell", len(labels))),
                var=pd.DataFrame(index=genes),
            )
            adata.write_h5ad(place / file, compression="gzip")
        self.places.append(place)

    def scores(self) -> pd.DataFrame | None:
        """Scores by cell-eval, mean over perturbations: metric × place; None if it is not installed.

        Those of every perturbation are written beside the cells as ``results.csv``.
        """
        if importlib.util.find_spec("cell_eval") is None:
            return None
        from cell_eval import MetricsEvaluator

        found = {}
        for place in self.places:
            evaluator = MetricsEvaluator(
                adata_pred=str(place / PREDICTED),
                adata_real=str(place / REAL),
                control_pert=CONTROL,
                pert_col=COLUMN,
                outdir=str(place),
                num_threads=1,
            )
            each, _ = evaluator.compute(profile="full", basename=RESULTS)
            table = pd.DataFrame(each.to_dicts()).set_index("perturbation")
            found[place.name] = table.apply(pd.to_numeric, errors="coerce").mean()
        return pd.DataFrame(found)

    def how(self) -> str:
        """What to type to score the cells where cell-eval is installed, for a message."""
        return (
            "cell-eval is not installed (pip install 'tadvae[cell-eval]'); in each subfolder: cell-eval run "
            f"-ap {PREDICTED} -ar {REAL} --control-pert {CONTROL} --pert-col {COLUMN}"
        )


def cell_eval_table(scores: pd.DataFrame) -> Table:
    """Scores by cell-eval for the terminal."""
    table = Table(title="scores by cell-eval, mean over perturbations", title_justify="left")
    table.add_column("metric")
    for name in scores.columns:
        table.add_column(name, justify="right")
    for metric, values in scores.iterrows():
        table.add_row(str(metric), *("" if np.isnan(value) else f"{value:.3f}" for value in values))
    return table


def _numbered(name: str, n: int) -> list[str]:
    return [f"{name}{i}" for i in range(n)]
