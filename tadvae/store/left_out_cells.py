"""Cells that a spec leaves out by its quality control (``qc``), counted by reason."""

import numpy as np

from tadvae.base.errors import UserError
from tadvae.store.cell_labels import CellLabels
from tadvae.store.spec import DatasetSpec


def leave_out(
    labels: CellLabels, spec: DatasetSpec, perturbed: np.ndarray | None = None
) -> tuple[CellLabels, dict[str, int]]:
    """Apply the limits of a dataset's quality control.

    Parameters
    ----------
    labels
        Labels of n cells.
    perturbed
        Probability that a cell is perturbed, of the cells that ``max_guides`` keeps, in their order; NaN:
        unknown, the cell stays. None: not known yet, so escaped cells and small groups stay.

    Returns
    -------
    The labels of the cells that are kept, and the number of other cells by reason.

    Raises
    ------
    UserError
        If no perturbed cell, or no control cell, is left.
    """
    qc = spec.qc
    if qc is None or not qc.leaves_out:
        return labels, {}
    counts: dict[str, int] = {}
    if qc.max_guides is not None and labels.n_guides is not None:
        several = labels.n_guides > qc.max_guides
        counts[f"more than {qc.max_guides} guides"] = int(several.sum())
        labels = labels.subset(~several)
    if qc.min_perturbed is not None and perturbed is not None:
        escaped = perturbed < qc.min_perturbed  # False for NaN
        counts[f"escaped (probability below {qc.min_perturbed:g})"] = int(escaped.sum())
        labels = labels.subset(~escaped)
    if qc.min_cells is not None and (qc.min_perturbed is None or perturbed is not None):
        control = labels.perturbations.index(()) if () in labels.perturbations else -1
        group = labels.context * max(len(labels.perturbations), 1) + labels.perturbation
        size = np.bincount(group, minlength=1)[group]
        few = (size < qc.min_cells) & (labels.perturbation != control)
        counts[f"fewer than {qc.min_cells} cells of the perturbation"] = int(few.sum())
        labels = labels.subset(~few)
    if () not in labels.perturbations or len(labels.perturbations) < 2:
        what = "control cell" if () not in labels.perturbations else "perturbed cell"
        raise UserError(f"dataset '{spec.name}' ({spec.path}): its 'qc' leaves no {what}; widen its limits.")
    return labels, {reason: n for reason, n in counts.items() if n}
