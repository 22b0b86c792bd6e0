"""The door for users: a trained model and what one asks it.

>>> model = TADVAE.from_pretrained("RUN")            # doctest: +SKIP
>>> model.activities(adata)                          # adata.obsm["X_tadvae_activity"]
>>> model.predict("KLF1+MAP2K6", context="k562")     # AnnData of predicted cells
"""

import os
from collections.abc import Sequence
from typing import Any, Literal, Self

import anndata as ad
import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from tadvae.batch import Cells, PackedCells
from tadvae.causal_graph import CausalGraph, pathway_effects, read_graph
from tadvae.cells import NewCells, cells_of, read_controls
from tadvae.checkpoint import WEIGHTS, load_weights, state_tensors
from tadvae.effects.file import load_effects, save_effects
from tadvae.effects.model import EffectModel, EffectsConfig
from tadvae.errors import UserError
from tadvae.experiment import ExperimentConfig
from tadvae.filesystem import Location
from tadvae.genes import canonical_targets
from tadvae.many import predicted_means
from tadvae.module import TADVAEModule
from tadvae.nn.causal import Intervention
from tadvae.prepare import mean_profile
from tadvae.vocabulary import Vocabulary

CONFIG = "config.yaml"
CELLS_AT_ONCE = 1024


class TADVAE:
    """A trained model.

    Attributes
    ----------
    vocabulary
        Names of genes, pathways, datasets, contexts and targets.
    config
        The resolved config of its run.
    controls
        Some control cells of each context, where the model was loaded from a run; predictions start from
        them. By row of ``vocabulary.contexts``.
    effects
        The regression of mean effects; None: predictions are the network's alone.
    """

    def __init__(
        self,
        module: TADVAEModule,
        vocabulary: Vocabulary,
        config: ExperimentConfig,
        controls: dict[int, Cells] | None = None,
        effects: EffectModel | None = None,
    ) -> None:
        self.module = module.eval()
        self.vocabulary = vocabulary
        self.config = config
        self.controls = controls or {}
        self.effects = effects

    @classmethod
    def from_pretrained(cls, place: str | os.PathLike[str]) -> Self:
        """Load a run's folder, or a folder of :meth:`save_pretrained`.

        Raises
        ------
        UserError
            If there is no finished model, or it is damaged.
        """
        folder = Location.of(place)
        run = folder if (folder / "model").exists() else None
        folder = folder / "model" if run is not None else folder
        vocabulary = Vocabulary.load(folder)
        if not (folder / WEIGHTS).exists():
            raise UserError(
                f"{folder}: no {WEIGHTS}: the run has not finished; go on with it by "
                "`tadvae train … --resume`."
            )
        try:
            config = ExperimentConfig.load_text((folder / CONFIG).read_text(), str(folder / CONFIG))
        except (OSError, UnicodeDecodeError):
            raise UserError(
                f"{folder}: damaged model folder ({CONFIG} cannot be read); copy it again from its run."
            ) from None
        module = TADVAEModule(config.model, config.loss, vocabulary, files=False)
        load_weights((folder / WEIGHTS), module)
        genes = {i: dataset.genes for i, dataset in enumerate(vocabulary.datasets)}
        effects = load_effects(folder, genes) if config.effects.weight else None
        return cls(module, vocabulary, config, read_controls(run) if run is not None else None, effects)

    def save_pretrained(self, place: str | os.PathLike[str]) -> None:
        """Write weights, config, vocabulary and mean effects; control cells stay behind, they are data."""
        folder = Location.of(place)
        folder.make_folder()
        self.vocabulary.save(folder)
        config = self.config
        if self.effects is not None:
            save_effects(self.effects, folder)
        else:  # a config that asks for them would look for their file
            config = config.model_copy(update={"effects": EffectsConfig(weight=0.0)})
        (folder / CONFIG).write_text(config.to_yaml())
        with (folder / WEIGHTS).replacing() as partial:
            save_file(state_tensors(self.module), partial.path)

    # -- what cells do ------------------------------------------------------------------------------

    def activities(
        self, adata: ad.AnnData, *, layer: str | None = None, values: Literal["counts", "log1p"] = "counts"
    ) -> pd.DataFrame:
        """Activity of every pathway in every cell.

        Parameters
        ----------
        adata
            Cells with any panel; genes are matched by identifier.
        layer
            Layer with the values; None: ``X``.
        values
            Raw counts, or log1p values normalised as in training.

        Returns
        -------
        Activities, shape (n_cells, P), by pathway id; NaN where the panel has fewer measured genes of a
        pathway than the model asks for. Also put into ``adata.obsm["X_tadvae_activity"]``, with the
        pathways' names and availability in ``adata.uns["tadvae"]``.
        """
        cells = cells_of(adata, self.vocabulary, self.config.preprocess, layer=layer, values=values)
        activity, _ = self._encode(cells)
        activity[:, ~cells.available] = np.nan
        membership = self.vocabulary.membership
        adata.obsm["X_tadvae_activity"] = activity
        adata.uns["tadvae"] = {
            "pathways": membership.pathway_ids,
            "pathway_names": membership.names,
            "available": cells.available,
            "genes_matched": len(cells.genes),
        }
        return pd.DataFrame(activity, index=adata.obs_names, columns=membership.pathway_ids)

    def latent(
        self, adata: ad.AnnData, *, layer: str | None = None, values: Literal["counts", "log1p"] = "counts"
    ) -> np.ndarray:
        """Latent means, shape (n_cells, K); also put into ``adata.obsm["X_tadvae"]``."""
        cells = cells_of(adata, self.vocabulary, self.config.preprocess, layer=layer, values=values)
        _, latent = self._encode(cells)
        adata.obsm["X_tadvae"] = latent
        return latent

    def contributions(
        self,
        adata: ad.AnnData,
        pathway: str,
        *,
        layer: str | None = None,
        values: Literal["counts", "log1p"] = "counts",
    ) -> pd.DataFrame:
        """What each gene adds to one pathway's activity, shape (n_cells, genes that can).

        Genes are the measured members of the pathway, and others where the model lets them contribute
        (candidates of a soft mask, a leak). Rows sum to the activity less the pathway's bias.
        """
        membership = self.vocabulary.membership
        if pathway not in membership.pathway_ids:
            raise UserError(f"pathway '{pathway}' is not in the model; see model.vocabulary.membership.")
        p = membership.pathway_ids.index(pathway)
        cells = cells_of(adata, self.vocabulary, self.config.preprocess, layer=layer, values=values)
        genes = np.intersect1d(self.module.pathway.reads(p).numpy(), cells.genes)
        result = np.zeros((len(cells.cells), len(genes)), np.float32)
        for start in range(0, len(cells.cells), CELLS_AT_ONCE):
            part = PackedCells.of(cells.cells[start : start + CELLS_AT_ONCE], panels=[cells.genes])
            with torch.no_grad():
                parts = self.module.pathway.contributions(part, p)
            column = np.searchsorted(genes, parts.gene.numpy())
            result[start + parts.cell.numpy(), column] = parts.value.numpy()
        return pd.DataFrame(result, index=adata.obs_names, columns=self.vocabulary.symbols(genes))

    def _encode(self, cells: NewCells) -> tuple[np.ndarray, np.ndarray]:
        available = torch.from_numpy(cells.available)
        activities, latents = [], []
        with torch.no_grad():
            for start in range(0, len(cells.cells), CELLS_AT_ONCE):
                part = PackedCells.of(cells.cells[start : start + CELLS_AT_ONCE], panels=[cells.genes])
                activity, mean, _ = self.module.encode(part, available.expand(part.n_cells, -1))
                activities.append(activity.numpy())
                latents.append(mean.numpy())
        return np.concatenate(activities), np.concatenate(latents)

    # -- what perturbations do ----------------------------------------------------------------------

    def predict(
        self,
        target: str | Sequence[str],
        *,
        context: str,
        dataset: str | None = None,
        controls: ad.AnnData | None = None,
        values: Literal["counts", "log1p"] = "counts",
    ) -> ad.AnnData:
        """Predict cells under a perturbation.

        Parameters
        ----------
        target
            One target, or several as ``"A+B"`` or a sequence.
        context, dataset
            Name of a training context, and of its dataset where several have it. With ``controls`` the
            context may be new; the dataset then says which screen's way of perturbing is meant.
        controls
            Control cells to start from; None: those kept with the run, or else the context's mean profile.

        Returns
        -------
        Predicted cells: ``X`` in log-normalised units, one row a control cell; ``var["predicted_mean"]``,
        ``var["control_mean"]``; ``uns["tadvae"]`` says from what.

        Raises
        ------
        UserError
            Where the model does not know: an unknown target or context.
        """
        names = _names(target)
        if controls is not None:
            new = cells_of(controls, self.vocabulary, self.config.preprocess, layer=None, values=values)
            cells, genes, start, row = new.cells, new.genes, "given control cells", -1
            d = self._dataset_like(names, dataset)
            profile = mean_profile(cells, genes)
            index = controls.obs_names.astype(str).tolist()
        else:
            row = self.vocabulary.context(context, dataset)
            d, genes, profile, cells, start = self._start(row)
            index = [f"control_{i}" for i in range(len(cells))]
        pairs = [self._target(name, d) for name in names]
        predicted = self.counterfactual(cells, genes, profile, d, [pairs], row)[0]
        symbols = self.vocabulary.symbols(genes)
        var = pd.DataFrame(
            {
                "gene": self.vocabulary.genes["gene"].to_numpy()[genes],
                "predicted_mean": predicted.mean(axis=0),
                "control_mean": cells.dense(genes).mean(axis=0),
            },
            index=pd.Index(_unique(symbols)),
        )
        label = "+".join(sorted(names))
        obs = pd.DataFrame({"perturbation": label, "context": context}, index=pd.Index(index))
        about: dict[str, Any] = {
            "perturbation": label,
            "context": context,
            "dataset": self.vocabulary.datasets[d].name,
            "started_from": start,
            "normalisation": self.vocabulary.datasets[d].method,
        }
        return ad.AnnData(predicted, obs=obs, var=var, uns={"tadvae": about})

    def predict_means(
        self, targets: Sequence[str | Sequence[str]], *, context: str, dataset: str | None = None
    ) -> pd.DataFrame:
        """Mean profiles under many perturbations at once, log-normalised, shape (M, G).

        Parameters
        ----------
        targets
            As for :meth:`predict`, one entry a perturbation.
        context, dataset
            Of training; predictions start from the same cells as those of :meth:`predict`, and row i is the
            ``predicted_mean`` of perturbation i.

        Returns
        -------
        By label (``A+B``) and gene symbol.

        Raises
        ------
        UserError
            Where the model does not know a target or the context.
        """
        row = self.vocabulary.context(context, dataset)
        d, genes, profile, cells, _ = self._start(row)
        names = [_names(target) for target in targets]
        found = {name: self._target(name, d) for name in sorted({name for each in names for name in each})}
        perturbations = [[found[name] for name in each] for each in names]
        means = predicted_means(self, cells, genes, profile, d, perturbations, row)
        labels = ["+".join(sorted(each)) for each in names]
        return pd.DataFrame(means, index=labels, columns=_unique(self.vocabulary.symbols(genes)))

    def _start(self, row: int) -> tuple[int, np.ndarray, np.ndarray, Cells, str]:
        """Dataset, genes, control profile and cells to start from in a context, and what those cells are."""
        entry = self.vocabulary.contexts[row]
        genes = self.vocabulary.datasets[entry.dataset].genes
        if row in self.controls:
            return entry.dataset, genes, entry.profile, self.controls[row], "control cells of the run"
        cells = profile_cell(entry.profile, genes)
        return entry.dataset, genes, entry.profile, cells, "mean control profile"

    def counterfactual(
        self,
        cells: Cells,
        genes: np.ndarray,
        profile: np.ndarray,
        dataset: int,
        perturbations: Sequence[Sequence[tuple[int, int]]],
        context: int = -1,
    ) -> np.ndarray:
        """The cells under each of M perturbations, float32, shape (M, n, G).

        The network moves each cell; the mean of the moves is then mixed with the regression's mean effect
        (``effects.weight``), which has the whole say of a target that the network does not know.

        Parameters
        ----------
        cells
            n control cells.
        genes
            Sorted vocabulary indices, shape (G,).
        profile
            Their context's mean control profile, shape (G,).
        dataset
            Model index of the dataset.
        perturbations
            (target, modality) model indices of each perturbation.
        context
            Row of the vocabulary's contexts; −1: a new one.
        """
        known = [[(t, m) for t, m in pairs if self.unknown(t) is None] for pairs in perturbations]
        predicted = self.network_cells(cells, genes, profile, dataset, known)  # (M, n, G)
        if self.effects is None:
            return predicted
        effect = self.effects.predict(dataset, context, perturbations, genes)  # (M, G)
        moved = predicted.mean(axis=1, dtype=np.float64) - cells.dense(genes).mean(axis=0, dtype=np.float64)
        whole = [len(kept) < len(pairs) for kept, pairs in zip(known, perturbations, strict=True)]
        weight = np.where(whole, 1.0, self.config.effects.weight)[:, None]  # (M, 1)
        return predicted + (weight * (effect - moved))[:, None].astype(np.float32)

    def network_cells(
        self,
        cells: Cells,
        genes: np.ndarray,
        profile: np.ndarray,
        dataset: int,
        perturbations: Sequence[Sequence[tuple[int, int]]],
    ) -> np.ndarray:
        """:meth:`counterfactual` without the regression."""
        module, on = self.module, torch.from_numpy(genes)
        available = self.vocabulary.membership.availability(genes, self.vocabulary.min_measured)
        flat = [(t, m, i) for i, pairs in enumerate(perturbations) for t, m in pairs]
        columns = [torch.tensor([row[j] for row in flat], dtype=torch.int64) for j in range(3)]
        intervention = Intervention(
            columns[0], columns[1], torch.full_like(columns[0], dataset), columns[2], len(perturbations)
        )
        with torch.no_grad():
            temperature = self.config.loss.temperature.high
            shifts = module.causal.shifts(intervention, module.decoder.gene, temperature)  # (M, K)
            packed = PackedCells.of(cells, panels=[genes])
            _, z, _ = module.encode(packed, torch.from_numpy(available).expand(len(cells), -1))
            before = module.decoder.hidden(module.causal(z))  # (n, d)
            dense, offset = torch.from_numpy(cells.dense(genes)), torch.from_numpy(profile)
            return np.stack(
                [
                    module.counterfactual(
                        before, module.decoder.hidden(module.causal(z + shift)), dense, on, offset
                    ).numpy()
                    for shift in shifts
                ]
            )

    def factors(self, top: int = 10) -> pd.DataFrame:
        """The pathways that make each factor: the ``top`` largest |δ|, one row a (factor, pathway)."""
        delta = self.module.factors.loadings.detach().numpy()  # (K, P)
        membership = self.vocabulary.membership
        rows = []
        for k, loadings in enumerate(delta):
            for p in np.argsort(-np.abs(loadings), kind="stable")[:top]:
                rows.append((k, membership.pathway_ids[p], membership.names[p], float(loadings[p])))
        return pd.DataFrame(rows, columns=["factor", "pathway", "name", "loading"])

    def graph(self) -> np.ndarray:
        """Effects of factors on each other, strictly upper triangular: (i, j) is the effect of i on j."""
        return self.module.causal.adjacency().detach().numpy()

    def causal_graph(self, n_factors: int | None = None, threshold: float = 0.2) -> CausalGraph:
        """The graph that the effects of single targets on pathways show; see :mod:`tadvae.causal_graph`.

        Only pathways that every dataset can see take part, and the targets seen in training, in the
        vocabulary's order. Effects are those of the regression, averaged over contexts, with the sign that
        they would have were all targets activated.

        Raises
        ------
        UserError
            If the model has no regression of effects, or too few targets or pathways.
        """
        if self.effects is None:
            raise UserError("causal graph: this model was trained with effects.weight 0; train with effects.")
        effects, _ = pathway_effects(self.effects, self.vocabulary)
        K = n_factors or min(self.config.model.causal.n_factors, *effects.shape)
        return read_graph(effects, K, threshold)

    def unknown(self, target: int) -> str | None:
        """Why the model cannot answer for a target, None if it can.

        Indices of ``len(vocabulary.targets)`` and above stand for genes of the vocabulary.
        """
        named = self.vocabulary.targets[target] if target < len(self.vocabulary.targets) else None
        if named is not None and named.seen:
            return None
        if self.config.model.causal.targets == "identity":
            return "it was not perturbed in training, and this model knows targets by identity only"
        gene = named.gene if named is not None else target - len(self.vocabulary.targets)
        if any(np.isin(gene, entry.genes).item() for entry in self.vocabulary.datasets):
            return None
        return "it was not perturbed in training, and its gene is measured in no dataset"

    def _target(self, name: str, dataset: int) -> tuple[int, int]:
        """(target, modality) of a name in a dataset; a UserError with the reason where it is unknown."""
        vocabulary, entry = self.vocabulary, self.vocabulary.datasets[dataset]
        index = vocabulary.target_index.get(name)
        if index is None:
            (key,) = canonical_targets([name], vocabulary.gene_reference)
            gene = vocabulary.gene_index.get(key) if key is not None else None
            if gene is None:
                raise UserError(
                    f"target '{name}': no prediction, because it is neither a target of the training screens "
                    "nor one of their genes; see model.vocabulary.targets for those that are."
                )
            by_gene = {t.gene: i for i, t in enumerate(vocabulary.targets) if t.gene >= 0}
            index = by_gene.get(gene, len(vocabulary.targets) + gene)
        reason = self.unknown(index)
        if reason is not None:
            raise UserError(
                f"target '{name}': no prediction, because {reason}; train with cells of this perturbation, "
                "or with model.causal.targets=gene on screens that measure it."
            )
        return index, entry.target_modality.get(index, entry.modality)

    def _dataset_like(self, names: Sequence[str], dataset: str | None) -> int:
        known = [entry.name for entry in self.vocabulary.datasets]
        if dataset is not None:
            if dataset not in known:
                raise UserError(f"dataset '{dataset}' was not in training (known: {', '.join(known)}).")
            return known.index(dataset)
        wanted = {self.vocabulary.target_index.get(name.strip()) for name in names}
        holders = [
            i for i, entry in enumerate(self.vocabulary.datasets) if wanted <= set(entry.target_modality)
        ]
        if len(holders) != 1:
            raise UserError(
                "with your own controls, say which screen's way of perturbing is meant: "
                f"--dataset, one of {', '.join(known)}."
            )
        return holders[0]


def _names(target: str | Sequence[str]) -> list[str]:
    """Targets of one perturbation."""
    return [name.strip() for name in (target.split("+") if isinstance(target, str) else target)]


def profile_cell(profile: np.ndarray, genes: np.ndarray) -> Cells:
    """A mean profile as one cell."""
    at = np.flatnonzero(profile)
    return Cells(genes[at], profile[at].astype(np.float32), np.array([0, len(at)]), np.array([np.nan]))


def _unique(names: list[str]) -> list[str]:
    """Names made unique as AnnData wants them; duplicates get a suffix."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, -1) + 1
        result.append(name if not seen[name] else f"{name}-{seen[name]}")
    return result
