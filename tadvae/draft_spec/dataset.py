"""The settings of one dataset, found by looking into its file."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tadvae.base.errors import UserError
from tadvae.draft_spec.columns import (
    PerturbationColumn,
    batch_column,
    context_columns,
    guide_columns,
    is_drug_column,
    is_modality_column,
    judged,
    library_size_column,
    modality_in,
    perturbation_columns,
    same_cells,
    without_controls,
)
from tadvae.draft_spec.control_labels import is_control_label
from tadvae.draft_spec.decisions import Decisions, Question, some
from tadvae.draft_spec.file import LookedAt
from tadvae.draft_spec.genes import GeneColumn, gene_column
from tadvae.draft_spec.matrices import matrix_of
from tadvae.genes.reference import GeneReference
from tadvae.store.spec import UNSPECIFIED

_NO_TARGET = re.compile(
    r"(?i)(doublet|multiplet|multi|unassigned|ambiguous|unknown|no[-_ ]?(guide|call|grna))s?"
)
NO_COLUMN = "none of them: all cells are unperturbed"
_GENETIC = ("CRISPRi", "CRISPRa", "CRISPRko", "Cas13d", "RNAi", "overexpression")
_OTHER = ("drug", "ligand", "stimulation")


@dataclass(frozen=True)
class Given:
    """What the user says of all files, by options.

    Attributes
    ----------
    perturbation, context
        Columns of obs; None: look for them.
    controls
        Labels of control cells; none: look for them.
    modality
        How targets are perturbed; None: look for it.
    """

    perturbation: str | None = None
    controls: tuple[str, ...] = ()
    context: str | None = None
    modality: str | None = None


@dataclass(frozen=True)
class DatasetDraft:
    """Settings of one dataset.

    Attributes
    ----------
    settings
        As the spec says them, without defaults; the path is that of the file as it was given.
    reasons
        Why a setting was guessed, by its path in the settings.
    genes
        The column of identifiers.
    """

    settings: dict[str, Any]
    reasons: dict[tuple[str, ...], str]
    genes: GeneColumn


def draft_dataset(file: LookedAt, name: str, given: Given, decisions: Decisions) -> DatasetDraft:
    """Find the settings of a file.

    Raises
    ------
    UserError
        If the file cannot be converted, or where a guess could not be defended and nobody can be asked.
    """
    matrix = matrix_of(file)
    var = file.raw_var if matrix.head.place == "raw" and file.raw_var is not None else file.var
    genes = gene_column(var, file.path)
    human = GeneReference.load("human")
    own = genes.names | set(map(str, var.index))

    def is_gene(text: str) -> bool:
        return text in own or human.is_official(text)

    found = _perturbation_column(file, given, decisions, is_gene)
    context = _context(file, name, given, decisions, found)
    per_condition = _rows_per_condition(file, found, context)
    signed = matrix.head.kind == "signed"
    if signed and per_condition > 1.5:
        raise UserError(
            f"{file.path}: X has negative values in single cells, so it looks scaled, and no layer and no "
            ".raw holds counts; give a file with raw counts (for signed effects, one row per condition)."
        )
    settings: dict[str, Any] = {"name": name, "path": file.path}
    if signed:
        settings["kind"] = "signatures"
    elif per_condition <= 1.5 and found is not None:
        settings["kind"] = "profiles"
        decisions.note(("kind",), "about one row per condition")
    settings |= matrix.settings
    if matrix.reason is not None:
        decisions.note((next(iter(matrix.settings), "counts"),), matrix.reason)
    if matrix.head.kind == "counts" and (sizes := library_size_column(file, matrix.head)):
        settings["total_counts"] = sizes
        decisions.note(("total_counts",), "larger than the sums over the measured genes in every cell")
    if found is not None:
        settings["perturbation"] = _perturbation(file, given, decisions, found, signed)
    settings["context"] = context
    batch = batch_column(file, {*context.values()}, None if found is None else found.column)
    if batch is not None and settings.get("kind") is None:
        settings["batch"] = {"column": batch}
    if found is not None:
        modality = _modality(file, given, decisions, found, settings["perturbation"], var)
        settings |= (
            {}
            if modality == UNSPECIFIED and ("modality",) not in decisions.reasons
            else {"modality": modality}
        )
    if found is not None and settings.get("kind") is None and (guides := guide_columns(file, found.column)):
        settings["qc"] = guides
    if genes.column is not None:
        settings["genes"] = {"column": genes.column}
    return DatasetDraft(settings, decisions.reasons, genes)


def _perturbation_column(
    file: LookedAt, given: Given, decisions: Decisions, is_gene: Callable[[str], bool]
) -> PerturbationColumn | None:
    if given.perturbation in file.columns and given.perturbation is not None:
        return judged(file.columns[given.perturbation], is_gene)
    found = perturbation_columns(file, is_gene)
    names = [each.column.name for each in found]
    if not found:
        others = [name for name, column in file.columns.items() if not column.is_number]
        question = Question("which column of obs names the perturbation of each cell?", (NO_COLUMN, *others))
        reason = f"no column of obs names perturbations (columns: {some(file.columns, 8) or 'none'})"
        chosen = decisions.choose(("context",), question, reason=f"{reason}, so all cells are controls")
        return None if chosen == NO_COLUMN else judged(file.columns[chosen], is_gene)
    first = found[0]
    rivals = [
        each
        for each in found[1:]
        if each.score > first.score - 2.5 and not same_cells(each.column, first.column)
    ]
    if not rivals and first.score >= 5:
        return first
    question = Question("which column of obs names the perturbation of each cell?", (*names, NO_COLUMN))
    reason = "the column that looks most like it"
    if rivals:
        reason += f"; others: {some(each.column.name for each in rivals)}"
    chosen = decisions.choose(("perturbation", "column"), question, reason=reason)
    return next((each for each in found if each.column.name == chosen), None)


def _perturbation(
    file: LookedAt, given: Given, decisions: Decisions, found: PerturbationColumn, signed: bool
) -> dict[str, Any]:
    column, setting = found.column, ("perturbation",)
    result: dict[str, Any] = {"column": column.name}
    excluded = [
        label for label in column.labels if _NO_TARGET.fullmatch(label) and label not in given.controls
    ]
    if signed:
        excluded += found.controls
    else:
        controls = _controls(file, given, decisions, found)
        result["control"] = controls[0] if len(controls) == 1 else controls
    if found.separator is not None:
        result["separator"] = found.separator
    if found.remove is not None:
        result["remove"] = found.remove
        decisions.note((*setting, "remove"), "labels look like names of guides")
    if excluded:
        result["exclude"] = excluded
        decisions.note(
            (*setting, "exclude"), "labels that name no target" if not signed else "rows of controls"
        )
    if column.n_missing:
        result["missing"] = "drop"
        decisions.note((*setting, "missing"), f"{column.n_missing} cells have no label")
    return result


def _controls(file: LookedAt, given: Given, decisions: Decisions, found: PerturbationColumn) -> list[str]:
    """Labels, or parts of labels, of control cells."""
    labels = found.column.labels
    if stated := [label for label in given.controls if label in labels]:
        return stated
    controls: dict[str, None] = {}
    for label in labels:
        pieces = [label]
        if found.separator and found.separator in label:
            pieces = [piece.strip() for piece in label.split(found.separator)]
            if label in found.controls and not all(map(is_control_label, pieces)):
                pieces = [label]
        for piece in pieces:
            bare = re.sub(found.remove, "", piece) if found.remove else piece
            if is_control_label(bare):
                controls[bare] = None
            elif is_control_label(piece):
                controls[piece] = None
    whole = [name for name in controls if name in labels or found.remove]
    place = f"obs column '{found.column.name}'"
    if not whole:
        question = Question(
            f"which label of {place} is that of control cells?", tuple(labels)[:20], free=True
        )
        chosen = decisions.choose(
            ("perturbation", "control"),
            question,
            reason=f"no label of {place} looks like that of control cells (labels: {some(labels)})",
            refuse="name it with --control LABEL, or another column with --perturbation COLUMN",
        )
        if chosen not in labels:
            raise UserError(f"{file.path}: {place} has no label '{chosen}'; give one of {some(labels, 8)}.")
        return [chosen]
    if len(whole) == 1 or len({_folded(name) for name in whole}) == 1:
        return list(controls)
    everything = "all of them"
    question = Question(
        f"which labels of {place} are those of control cells ({some(whole)})?", (everything, *whole)
    )
    reason = "all labels that look like those of controls"
    chosen = decisions.choose(("perturbation", "control"), question, reason=reason)
    return list(controls) if chosen == everything else [chosen]


def _folded(name: str) -> str:
    return re.sub(r"[\W\d_]+", "", name.casefold())


def _context(
    file: LookedAt, name: str, given: Given, decisions: Decisions, found: PerturbationColumn | None
) -> dict[str, str]:
    if given.context in file.columns and given.context is not None:
        return {"column": given.context}
    sure, likely = context_columns(file, None if found is None else found.column.name)
    names, reason = [*sure, *likely], "no column of obs names the cell line or type"
    if found is not None and found.controls:
        controls = set(found.controls)
        lacking = {each: without_controls(file, each, found.column, controls) for each in names}
        names = [each for each in names if not lacking[each]]  # training would refuse it
        for column, contexts in lacking.items():
            if contexts:
                reason = (
                    f"no control cells in {some(contexts)} of column '{column}', so it is not the context"
                )
                break
    if len(names) == 1 and names[0] in sure:
        return {"column": names[0]}
    if names:
        question = Question("which column of obs names the cell line or type?", tuple(names))
        others = f"; others: {some(names[1:])}" if names[1:] else ""
        reason = f"the column that looks most like a cell line or type{others}"
        return {"column": decisions.choose(("context", "column"), question, reason=reason)}
    question = Question(f"{reason}; what is the cell line or type?", (name,), free=True)
    reason = decisions.reasons.pop(("context",), reason)
    return {"value": decisions.choose(("context", "value"), question, reason=reason)}


def _rows_per_condition(file: LookedAt, found: PerturbationColumn | None, context: dict[str, str]) -> float:
    """Mean number of rows of one perturbation in one context."""
    if found is None:
        return float(len(file.obs))
    frame = pd.DataFrame({"label": found.column.values.astype(str)})
    if "column" in context:
        frame["context"] = file.obs[context["column"]].astype(str)
    return len(frame) / max(len(frame.drop_duplicates()), 1)


def _modality(
    file: LookedAt,
    given: Given,
    decisions: Decisions,
    found: PerturbationColumn,
    perturbation: dict[str, Any],
    var: pd.DataFrame,
) -> str | dict[str, str]:
    if given.modality is not None:
        return given.modality
    for column in file.columns.values():
        is_one = is_modality_column(column) and column.name != found.column.name
        if is_one and (stated := _stated(column.values, found, perturbation)):
            return stated
    if is_drug_column(found.column.name):
        return "drug"
    for what, text in (
        ("column of obs", found.column.name),
        ("name of the file", file.name),
        (
            "columns of the matrix",
            " ".join(name for name in map(str, var.index) if "cas" in name.casefold())[:1000],
        ),
    ):
        if (named := modality_in(text)) is not None:
            question = Question("how are targets perturbed?", (named, *_others(named)), free=True)
            return decisions.choose(("modality",), question, reason=f"the {what} says so")
    kinds = (*_GENETIC, *_OTHER) if found.genes >= 0.5 else (*_OTHER, *_GENETIC)
    question = Question("how are targets perturbed?", (UNSPECIFIED, *kinds), free=True)
    reason = f"nothing says how targets are perturbed; expected such as {', '.join(kinds[:3])}"
    return decisions.choose(("modality",), question, reason=reason)


def _others(named: str) -> tuple[str, ...]:
    return tuple(each for each in (*_GENETIC, *_OTHER, UNSPECIFIED) if each != named)


def _stated(
    values: pd.Series, found: PerturbationColumn, perturbation: dict[str, Any]
) -> str | dict[str, str] | None:
    """Modality by a column: one for all perturbed cells, or the most frequent and those of other targets."""
    controls = perturbation.get("control", [])
    controls = {controls} if isinstance(controls, str) else set(controls)
    frame = pd.DataFrame({"label": found.column.values.astype(str).str.strip(), "says": values.astype(str)})
    frame = frame[~frame["label"].isin(controls)]
    says = frame.groupby("label")["says"].agg(lambda each: each.value_counts().index[0])
    named = {str(label): modality_in(str(text)) or str(text).strip() for label, text in says.items()}
    if not named:
        return None
    default = str(pd.Series(list(named.values())).value_counts().index[0])
    own = {
        label: modality
        for label, modality in named.items()
        if modality != default and not (found.separator and found.separator in label) and not found.remove
    }
    return {"default": default, **own} if own else default
