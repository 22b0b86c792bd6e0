"""Settings of simulated screens; what they mean is in :mod:`tadvae.simulation.simulate`."""

from itertools import combinations
from math import comb
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from tadvae.base.config import Config


class ScreenConfig(Config):
    """One simulated screen."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="Name of dataset and file.")
    modality: Literal["CRISPRa", "CRISPRi"] = Field(default="CRISPRa", description="Shifts up or down.")
    contexts: tuple[str, ...] = Field(default=("SIMLINE1",), min_length=1, description="Cell lines.")
    n_genes: int = Field(default=600, ge=1, description="Measured genes.")
    n_singles: int = Field(default=12, ge=1, description="Targets perturbed alone.")
    n_doubles: int = Field(default=16, ge=0, description="Pairs of them perturbed together, drawn at random.")
    doubles: tuple[tuple[int, int], ...] | None = Field(
        default=None, description="The pairs, as positions among this screen's singles; replaces n_doubles."
    )
    doses: tuple[float, ...] = Field(
        default=(), description="Doses of every perturbation, in uM; none: no doses, as with full effect."
    )
    control_cells: int = Field(default=300, ge=1, description="Control cells per context.")
    cells_per_condition: int = Field(default=75, ge=1, description="Cells per context of other conditions.")
    depth: float = Field(default=3000.0, gt=0, description="Median total counts of a cell.")
    depth_sd: float = Field(default=0.35, ge=0, description="Standard deviation of the log depth.")
    n_batches: int = Field(default=2, ge=1, description="Batches that the cells are spread over.")
    escaped: float = Field(
        default=0.0, ge=0, lt=1, description="Share of perturbed cells in which nothing is perturbed."
    )


_SCREENS = (
    ScreenConfig(name="screen_a"),
    ScreenConfig(
        name="screen_b",
        modality="CRISPRi",
        contexts=("SIMLINE1", "SIMLINE2"),
        n_singles=8,
        n_doubles=6,
        depth=2000.0,
    ),
)


class SimulationConfig(Config):
    """All settings of a simulation; "spread" means the standard deviation of log rates."""

    seed: int = Field(default=0, ge=0, description="The only source of randomness.")
    n_genes: int = Field(default=800, ge=2, description="Genes that the panels are drawn from.")
    n_factors: int = Field(default=6, ge=1, description="Latent factors K.")
    n_pathways: int = Field(default=24, ge=1, validate_default=True, description="Pathways P.")
    genes_per_pathway: tuple[int, int] = Field(
        default=(15, 30), validate_default=True, description="Smallest and largest size of a pathway."
    )
    n_targets: int = Field(default=15, ge=1, validate_default=True, description="Targets T of all screens.")
    screens: tuple[ScreenConfig, ...] = Field(
        default=_SCREENS, min_length=1, validate_default=True, description="Screens; they share targets."
    )
    edge_fraction: float = Field(default=0.35, ge=0, le=1, description="Share of possible edges that exist.")
    edge_range: tuple[float, float] = Field(default=(0.4, 0.8), description="Absolute weight of an edge.")
    shift_range: tuple[float, float] = Field(default=(1.5, 3.0), description="Absolute shift, in SDs of z.")
    loading_range: tuple[float, float] = Field(default=(0.3, 0.6), description="Absolute loading.")
    negative_loadings: float = Field(default=0.25, ge=0, le=1, description="Share of loadings below 0.")
    dose_range: tuple[float, float] = Field(
        default=(0.03, 3.0), description="Half-maximal doses of the targets, drawn on a log scale."
    )
    slope_range: tuple[float, float] = Field(default=(0.8, 2.0), description="Hill slopes of the targets.")
    own_effect: float = Field(default=1.5, ge=0, description="Change of a target's own log rate.")
    epistasis: float = Field(default=1.0, ge=0, description="Absolute extra shift by a non-additive double.")
    epistasis_fraction: float = Field(default=0.25, ge=0, le=1, description="Share of doubles that have it.")
    activity_noise: float = Field(default=0.1, ge=0, description="SD of an activity given its factor.")
    baseline_sd: float = Field(default=1.0, ge=0, description="Spread of the genes.")
    context_sd: float = Field(default=0.3, ge=0, description="Spread of contexts, also of factor means.")
    batch_sd: float = Field(default=0.1, ge=0, description="Spread of the batches.")
    dispersion: float = Field(default=0.1, ge=0, description="Negative binomial dispersion; 0: Poisson.")
    truth_cells: int = Field(default=500, ge=1, description="Fresh cells behind each true mean profile.")

    @field_validator("edge_range", "shift_range", "loading_range", "dose_range", "slope_range")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1]:
            raise ValueError("expected a smallest and a largest value, not negative")
        return value

    @field_validator("n_pathways", "genes_per_pathway", "n_targets", "screens")
    @classmethod
    def _fits(cls, value: Any, info: ValidationInfo) -> Any:
        if not {"n_genes", "n_factors"} <= info.data.keys():
            return value  # these two are invalid themselves and are reported first
        G, K = info.data["n_genes"], info.data["n_factors"]
        if info.field_name == "n_pathways" and value < K:
            raise ValueError(f"expected one pathway or more for each of {K} factors")
        if info.field_name == "genes_per_pathway" and not 1 <= value[0] <= value[1] <= G:
            raise ValueError(f"expected a smallest and a largest size between 1 and n_genes = {G}")
        # The targets of a factor are members of one pathway, so they have to fit into it.
        most = min(G, K * info.data.get("genes_per_pathway", (G,))[0])
        if info.field_name == "n_targets" and value > most:
            raise ValueError(f"expected at most {most}, what the smallest pathways of {K} factors hold")
        for screen in value if info.field_name == "screens" else ():
            n, T, name = screen.n_singles, info.data.get("n_targets", G), screen.name
            if not n <= min(T, screen.n_genes) <= screen.n_genes <= G:
                raise ValueError(f"{name}: expected n_singles <= n_targets and n_singles <= n_genes <= {G}")
            if screen.doubles is None and screen.n_doubles > comb(n, 2):
                raise ValueError(f"{name}: expected n_doubles up to {comb(n, 2)} for {n} singles")
            pairs = {(min(pair), max(pair)) for pair in screen.doubles or ()}
            if len(pairs) < len(screen.doubles or ()) or not pairs <= set(combinations(range(n), 2)):
                raise ValueError(f"{name}: expected doubles to be different pairs of positions below {n}")
            if [other.name for other in value].count(name) > 1:
                raise ValueError(f"expected unique names, found '{name}' again")
            if len(set(screen.contexts)) < len(screen.contexts):
                raise ValueError(f"{name}: expected every context once")
        return value
