"""The public API: a trained model and what one asks of it.

>>> model = TADVAE.from_pretrained("RUN")            # doctest: +SKIP
>>> model.activities(adata)                          # adata.obsm["X_tadvae_activity"]
>>> model.predict("KLF1+MAP2K6", context="k562")     # AnnData of predicted cells
"""

import os
import tempfile
from collections.abc import Sequence
from typing import Any, Literal, Self

import anndata as ad
import numpy as np
import pandas as pd
import torch
from safetensors.torch import save

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.cells.ragged import Cells
from tadvae.data.amounts import Pair
from tadvae.data.lookup import Found
from tadvae.data.vocabulary import REPAIR, Vocabulary, model_files
from tadvae.effects.file import load_effects, save_effects
from tadvae.effects.model import EffectModel, EffectsConfig
from tadvae.model.activities import ReadsCells
from tadvae.model.card import write_card
from tadvae.model.causal_graph import CausalGraph, pathway_effects, read_graph
from tadvae.model.controls import check_controls
from tadvae.model.counts import counts_of
from tadvae.model.device import to_numpy
from tadvae.model.hub import HUB, download, upload
from tadvae.model.new_cells import cells_of
from tadvae.model.predict_many import PredictsMany
from tadvae.model.predictor import Predictor
from tadvae.model.run_folder import RunFolder
from tadvae.model.standard_errors import Errors, standard_errors_at
from tadvae.model.start import Means, MeansAt, Start, require_cells, start_at, start_from
from tadvae.model.targets import dataset_like, find_target, used_amounts, with_amounts
from tadvae.model.weights import CONFIG, WEIGHTS, build_with_weights, finish_model, state_tensors
from tadvae.nn.network import TADVAEModule
from tadvae.settings.experiment import ExperimentConfig


class TADVAE(ReadsCells, PredictsMany):
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
        self.predictor = Predictor(self.module, vocabulary, config, effects)

    @classmethod
    def from_pretrained(cls, place: str | os.PathLike[str]) -> Self:
        """Load a run's folder, a folder of :meth:`save_pretrained`, or ``hf://NAME/MODEL`` from the Hub.

        Raises
        ------
        UserError
            If there is no finished model, or it is damaged.
        """
        if str(place).startswith(HUB):
            place = download(str(place).removeprefix(HUB))
        run = RunFolder(place)
        folder = run.model if run.has_model else run.place
        vocabulary = Vocabulary.load(folder)
        if not (folder / WEIGHTS).exists():
            raise UserError(
                f"{folder}: no {WEIGHTS}: the run has not finished; go on with it by "
                "`tadvae train … --resume`."
            )
        files = model_files(folder)
        try:
            config = ExperimentConfig.load_text(files.read(CONFIG).decode("utf-8"), str(folder / CONFIG))
            weights = files.read(WEIGHTS)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{folder}: damaged model folder ({CONFIG} or {WEIGHTS} cannot be read: "
                f"{type(error).__name__}); {REPAIR}."
            ) from None

        def build() -> TADVAEModule:
            return TADVAEModule(config.model, config.loss, vocabulary, files=False)

        module = build_with_weights(folder / WEIGHTS, build, weights)
        genes = {i: dataset.genes for i, dataset in enumerate(vocabulary.datasets)}
        effects = load_effects(folder, genes) if config.effects.weight else None
        if effects is not None and not effects.suits(len(vocabulary.targets), len(vocabulary.modalities)):
            raise UserError(f"{folder}: its mean effects belong to another model; {REPAIR}.")
        controls = run.controls() if run.has_model else {}
        check_controls(controls, vocabulary, run)
        return cls(module, vocabulary, config, controls, effects)

    def to(self, device: str | torch.device) -> Self:
        """Move the network, such as to ``"cuda"``: activities and predictions are computed there."""
        self.module.to(device)
        return self

    def save_pretrained(self, place: str | os.PathLike[str]) -> None:
        """Write weights, config, vocabulary, mean effects and a model card (``README.md``).

        Control cells stay behind, they are data.
        """
        folder = Location.of(place)
        folder.make_folder()
        self.vocabulary.save(folder)
        config = self.config
        if self.effects is not None:
            save_effects(self.effects, folder)
        else:  # a config that asks for them would look for their file
            config = config.model_copy(update={"effects": EffectsConfig(weight=0.0)})
        (folder / CONFIG).write_text(config.to_yaml())
        write_card(folder, self.vocabulary, config)
        finish_model(folder, save(state_tensors(self.module)))

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = True,
        token: str | None = None,
        message: str = "Upload a tadvae model",
    ) -> str:
        """Put the model on the Hugging Face Hub; it is private unless you say otherwise.

        Parameters
        ----------
        repo
            ``NAME/MODEL``; made where it does not exist.
        token
            None: that of ``hf auth login``, or ``HF_TOKEN``.

        Returns
        -------
        Address of the commit; load the model with ``TADVAE.from_pretrained("hf://NAME/MODEL")``.

        Raises
        ------
        UserError
            If ``huggingface_hub`` is not installed, or the Hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(folder, repo, private=private, token=token, message=message)

    def predict(
        self,
        target: str | Sequence[str],
        *,
        context: str,
        dataset: str | None = None,
        controls: ad.AnnData | None = None,
        values: Literal["counts", "log1p"] = "counts",
        units: Literal["log1p", "counts"] = "log1p",
        dose: float | None = None,
        time: float | None = None,
        errors: bool = True,
    ) -> ad.AnnData:
        """Predict cells under a perturbation.

        Parameters
        ----------
        target
            One target, or several as ``"A+B"`` or a sequence: any label of the training files, also with a
            control joined to it (``"KLF1+ctrl"``), and genes by Ensembl id, symbol, alias, or as a file names
            them. A name is looked up whole before it is split. A label of controls alone predicts no change.
        context, dataset
            Name of a training context, and of its dataset where several have it. With ``controls`` the
            context may be new; the dataset then says which screen's way of perturbing is meant.
        controls
            Control cells to start from; None: those kept with the run, or else the context's mean profile.
        values
            Whether the control cells hold counts or log1p values.
        units
            Units of the prediction.

            - ``log1p``: as the network sees expression; the usual choice.
            - ``counts``: at the library size of each control cell (10,000 where it is not known, for
              ``cp10k``), none below zero; use it for tools that start from counts.
        dose, time
            Of the perturbation, in the units of the screens, for a model of screens with doses or times; may
            lie between those of training, and beyond them with a warning. None: the largest of training.
        errors
            Whether the standard error of the mean is computed.

        Returns
        -------
        Predicted cells: ``X`` in log-normalised units, one row per control cell; for a dataset of signatures
        one row, the signed effect in the units of its file (``uns["tadvae"]["values"]`` is ``effects``, of
        expression ``log1p`` or ``counts``). ``var["predicted_mean"]``, ``var["control_mean"]``, and for
        ``log1p`` values and effects ``var["se"]``, the standard error of the predicted mean
        (:mod:`tadvae.model.standard_errors`; NaN or absent where it is not known,
        ``uns["tadvae"]["no_se"]`` says why). ``uns["tadvae"]`` says from what. Genes have the names of the
        file of ``controls``, or else of the dataset's file; ``var`` has today's ``symbol`` and
        ``ensembl_id`` too, empty where a gene has none, and the model's key ``gene``.

        Raises
        ------
        UserError
            Where the model does not know: an unknown target or context.
        """
        if controls is None:
            start = start_at(self.vocabulary.context(context, dataset), self.vocabulary, self.controls)
        else:
            d = dataset_like(target, dataset, self.vocabulary)
            start = self.start_from(controls, d, context, values)
        d, genes, cells = start.dataset, start.genes, start.cells
        counts = counts_of(start, self.vocabulary, units)
        asked = self.vocabulary.lookup.find(target, d)
        found = [self._target(part, d) for part in asked.parts]
        pairs = with_amounts(found, d, self.vocabulary, (dose, time))
        predicted = self.counterfactual(cells, genes, start.profile, d, [pairs], start.row)[0]
        before = cells.dense(genes)
        if counts is not None:
            predicted, before = counts.of_cells(predicted), counts.of_cells(before)
        known = self.vocabulary.genes.iloc[genes]
        var = pd.DataFrame(
            {
                "gene": known["gene"].to_numpy(),
                "symbol": known["symbol"].fillna("").to_numpy(),
                "ensembl_id": known["ensembl_id"].fillna("").to_numpy(),
                "predicted_mean": predicted.mean(axis=0),
                "control_mean": before.mean(axis=0),
            },
            index=pd.Index(start.names),
        )
        obs = pd.DataFrame({"perturbation": asked.label, "context": context}, index=pd.Index(start.obs_names))
        about: dict[str, Any] = {
            "perturbation": asked.label,
            "context": context,
            "dataset": self.vocabulary.datasets[d].name,
            "started_from": start.what,
            "normalisation": self.vocabulary.datasets[d].method,
            "values": "effects" if self.vocabulary.datasets[d].has_effects else units,
            **used_amounts(pairs, self.vocabulary),
        }
        if errors and units == "log1p":
            errors_of, no_se = self._errors_at(start)
            if errors_of is not None:
                var["se"] = errors_of([pairs], var["predicted_mean"].to_numpy(np.float64)[None])[0]
            else:
                about["no_se"] = no_se
        return ad.AnnData(predicted, obs=obs, var=var, uns={"tadvae": about})

    def predict_means(
        self, targets: Sequence[str | Sequence[str]], *, context: str, dataset: str | None = None
    ) -> pd.DataFrame:
        """Mean profiles under many perturbations at once, log-normalised, shape (M, G).

        For a dataset of signatures, the rows are signed effects in the units of its file.

        Parameters
        ----------
        targets
            As for :meth:`predict`, one entry per perturbation.
        context, dataset
            Of training; predictions start from the same cells as those of :meth:`predict`, and row i is the
            ``predicted_mean`` of perturbation i.

        Returns
        -------
        By label (``A+B``) and gene, named as in the dataset's file.

        Raises
        ------
        UserError
            Where the model does not know a target or the context.
        """
        start = start_at(self.vocabulary.context(context, dataset), self.vocabulary, self.controls)
        asked = [self.vocabulary.lookup.find(target, start.dataset) for target in targets]
        none = (None, None)
        pairs = {
            part: with_amounts([self._target(part, start.dataset)], start.dataset, self.vocabulary, none)[0]
            for part in dict.fromkeys(p for each in asked for p in each.parts)
        }
        perturbations = [[pairs[part] for part in each.parts] for each in asked]
        means = self.predictor.means(
            start.cells, start.genes, start.profile, start.dataset, perturbations, start.row
        )
        return pd.DataFrame(means, index=[each.label for each in asked], columns=start.names)

    def means_at(self, row: int) -> MeansAt:
        """What predicts mean profiles in a context of training, by row of ``vocabulary.contexts``."""
        return self._means_of(start_at(row, self.vocabulary, self.controls))

    def means_of_cells(
        self, controls: ad.AnnData, dataset: int, context: str, values: Literal["counts", "log1p"]
    ) -> MeansAt:
        """What predicts mean profiles from a user's control cells, perturbed as in a dataset."""
        return self._means_of(self.start_from(controls, dataset, context, values))

    def _means_of(self, start: Start) -> MeansAt:
        some = self.predictor.means_from(start.cells, start.genes, start.profile, start.dataset, start.row)
        errors, no_se = self._errors_at(start)
        return MeansAt(
            start, lambda perturbations: Means(some(perturbations)), errors=errors, no_standard_error=no_se
        )

    def _errors_at(self, start: Start) -> tuple[Errors | None, str | None]:
        n_kept = len(start.cells) if start.row in self.controls else None
        return standard_errors_at(start, self.effects, n_kept)

    def start_from(
        self, controls: ad.AnnData, dataset: int, context: str, values: Literal["counts", "log1p"]
    ) -> Start:
        """A user's control cells as the start of predictions, perturbed as in a dataset (by index)."""
        require_cells(dataset, self.vocabulary)
        preprocess = self.config.preprocess
        new = cells_of(controls, self.vocabulary, preprocess, layer=None, values=values)
        return start_from(controls, new, dataset, context, preprocess.normalize, values == "counts")

    def counterfactual(
        self,
        cells: Cells,
        genes: np.ndarray,
        profile: np.ndarray,
        dataset: int,
        perturbations: Sequence[Sequence[Pair]],
        context: int = -1,
    ) -> np.ndarray:
        """The cells under each of M perturbations, in the model's indices, float32, shape (M, n, G).

        See :meth:`tadvae.model.predictor.Predictor.counterfactual` for the parameters.
        """
        return self.predictor.counterfactual(cells, genes, profile, dataset, perturbations, context)

    def _target(self, part: Found, dataset: int) -> tuple[int, int]:
        return find_target(part, dataset, self.vocabulary, self.unknown)

    def factors(self, top: int = 10) -> pd.DataFrame:
        """The pathways that make each factor: the ``top`` largest |δ|, one row per (factor, pathway)."""
        delta = to_numpy(self.module.factors.loadings)  # (K, P)
        membership = self.vocabulary.membership
        rows = []
        for k, loadings in enumerate(delta):
            for p in np.argsort(-np.abs(loadings), kind="stable")[:top]:
                rows.append((k, membership.pathway_ids[p], membership.names[p], float(loadings[p])))
        return pd.DataFrame(rows, columns=["factor", "pathway", "name", "loading"])

    def graph(self) -> np.ndarray:
        """Effects of factors on each other, shape (K, K), strictly upper triangular: (i, j) is i's on j.

        How the network composes its predictions, not what causes what: see docs/model.md, and
        :meth:`causal_graph`. Source: Zhang et al. 2023.
        """
        return to_numpy(self.module.causal.adjacency())

    def causal_graph(self, n_factors: int | None = None, threshold: float = 0.2) -> CausalGraph:
        """The graph that effects of single targets on pathways show; see :mod:`tadvae.model.causal_graph`.

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
        effects, pathways = pathway_effects(self.effects, self.vocabulary)
        K = n_factors or min(self.config.model.causal.n_factors, *effects.shape)
        return read_graph(effects, K, threshold, pathways)

    def unknown(self, target: int) -> str | None:
        """Why nothing can be predicted for a target, None if something can; see :class:`Predictor`."""
        return self.predictor.unknown(target)
