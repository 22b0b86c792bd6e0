"""The paper's table: maskings × sizes × encoders, by ``tadvae tune``, and what each network reads in cells.

    python benchmarks/paper_table.py --study norman_mcfaline --seeds 3
    python benchmarks/paper_table.py --study panels --seeds 3
    python benchmarks/paper_table.py

The first runs a sweep on a study of ``studies.py`` (an interrupted one goes on), asks the network of every
trial for the columns of ``paper_columns.py``, and stores the trials in the format of ``tadvae tune table`` as
``benchmarks/results/paper_table/STUDY.csv``; what is stored is not made again. The second trains with the
settings of the same grid on two halves of the genes. All write ``docs/paper-table.md`` from what is stored.
"""

import argparse
import shutil
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from paper_columns import PANEL_EPOCHS, Judge, panels
from replicability import replicability
from scipy.stats import t
from studies import STUDIES, make_store

from pipelines.cluster.connection import ray_session
from tadvae.base.filesystem import Location
from tadvae.model.tadvae import TADVAE
from tune.config import PAPER, SweepConfig
from tune.records import read_records, read_sweep, trial_folder
from tune.sweep import run_sweep
from tune.table import rows_of

ROOT = Path(__file__).resolve().parents[1]
STORED, PAGE = ROOT / "benchmarks" / "results" / "paper_table", ROOT / "docs" / "paper-table.md"
MASKING, WIDTH, ENCODER = "model.pathway.masking", "model.pathway.d_embed", "model.encoder.kind"
PANELS = "panels"
ABOUT = {
    "simulated": "two simulated screens (5,100 cells, 600 genes each, 24 pathways), 10 epochs",
    "norman_mcfaline": "Norman 2019 and McFaline-Figueroa 2023 (5,961 cells), 10 epochs",
    "datlinger": "Datlinger 2021 (7,500 cells), 10 epochs",
}
ALL = ["parameters.model.pathway.masking={choice: [agreement, linear, hard, soft, soft_log, none]}"]
"""The default masking, ``agreement``, is not in the paper; it is a trial of its own here."""
SETTINGS = [MASKING, WIDTH, ENCODER]
OF_SEEDS = "replicability"
JUDGED = {"truth": "activity truth", "targets": "target recovery", OF_SEEDS: "replicability"}
HEAD = [
    "# The paper's table",
    "",
    "Masking × embedding × encoder, every combination with every seed, by `tadvae tune` with the settings of "
    "`tadvae tune run --paper`; `benchmarks/paper_table.py` made it and wrote this page. Half of the "
    "combinations of targets are held out for validation. Networks are compared: the regression of mean "
    "effects, the same in all trials, has no part in the predictions. `agreement`, the default masking, is "
    "not in the paper. Mean (standard deviation) over seeds; ± after a difference: 95% interval of its mean, "
    "paired by seed. Seconds are those of a trial on one core of a machine that does other work too.",
    "",
    "- **Activity truth**: mean correlation over cells of a pathway's activity with the true one.",
    "- **Target recovery**: share of pairs in which a pathway that a perturbed gene belongs to moves more "
    "than one that it does not, without the gene's own expression (chance 0.5).",
    "- **Replicability**: correlation over cells of a pathway's activity between two seeds, mean over "
    "pathways, the least of all pairs of seeds.",
    "- **Panels**: reciprocal rank of a cell's other half, seen through a disjoint panel (chance 0.010); "
    f"networks trained for {PANEL_EPOCHS} epochs on two halves of the genes, by the same settings.",
    "",
]


def section(study: str, trials: pd.DataFrame) -> list[str]:
    """Lines of one study's part of the page."""
    done = trials[trials["status"] == "finished"].fillna({WIDTH: 0, ENCODER: "none"})
    linear = done[done[MASKING] == "linear"].set_index("seed")
    judged = [name for name in JUDGED if name in done and done[name].notna().any()]
    columns = ["masking", "width/heads", "encoder", "Pearson-Δ", "L2", "Pearson-Δ less `linear`'s"]
    columns += [*(JUDGED[name] for name in judged), "seconds"]
    lines = [f"## {study}", "", f"{ABOUT[study][0].upper()}{ABOUT[study][1:]}; {len(done)} trials.", ""]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for layer, rows in done.groupby(SETTINGS):
        own = rows.set_index("seed")
        gap = (own["val_pearson_delta"] - linear["val_pearson_delta"]).dropna()
        less = "" if layer[0] == "linear" else f"{gap.mean():+.3f}"
        if less and len(gap) > 1:
            less += f" ± {t.ppf(0.975, len(gap) - 1) * gap.sem():.3f}"
        cells = [*_layer(layer), _spread(own["val_pearson_delta"], 3), _spread(own["val_l2"], 2), less]
        cells += [_spread(own[name], 3) for name in judged if name != OF_SEEDS]
        cells += [f"{own[name].mean():.3f}" for name in judged if name == OF_SEEDS]
        lines.append(f"| {' | '.join(cells)} | {own['seconds'].mean():.0f} |")
    return [*lines, "", *verdict(done, linear, judged)]


def _layer(layer: tuple[str, float, str]) -> list[str]:
    """Masking, width and encoder as cells of a table."""
    masking, width, encoder = layer
    return [f"`{masking}`", f"{width:.0f}/{width / 16:.0f}" if width else "–", encoder]


def _spread(values: pd.Series, digits: int) -> str:
    """Mean, and with several values their standard deviation."""
    mean = f"{values.mean():.{digits}f}"
    return f"{mean} ({values.std():.{digits}f})" if len(values) > 1 else mean


def verdict(done: pd.DataFrame, linear: pd.DataFrame, judged: list[str]) -> list[str]:
    """What the table says, in a few sentences."""
    attention = done[done[WIDTH] > 0]
    means = attention.groupby(SETTINGS)["val_pearson_delta"].mean()
    masking, width, encoder = means.idxmax()
    both = attention.pivot_table("val_pearson_delta", [MASKING, WIDTH, "seed"], ENCODER)
    gain = both["inducing"] - both["none"]
    lines = [
        f"`linear` has a Pearson-Δ of {linear['val_pearson_delta'].mean():.3f}; the best of {len(means)} "
        f"layers with attention over tokens is `{masking}`, {width:.0f} wide, encoder {encoder}, with "
        f"{means.max():.3f}. The encoder changes it by {gain.mean():+.4f} (standard error {gain.sem():.4f}, "
        f"{len(gain)} pairs)."
    ]
    for name in judged:
        of_layer = done.groupby(MASKING)[name].mean().sort_values(ascending=False)
        lines[0] += f" {JUDGED[name].capitalize()}, mean over layers: "
        lines[0] += ", ".join(f"`{masking}` {value:.3f}" for masking, value in of_layer.items()) + "."
    return [*lines, ""]


def panels_section(found: pd.DataFrame) -> list[str]:
    """Lines of the table of panels."""
    about = (
        f"10x PBMC, unperturbed cells; {found['seed'].nunique()} halvings of the genes (a layer without a "
        "standard deviation: one)."
    )
    lines = ["## Panels", "", about, "", "| masking | width/heads | encoder | MRR |", "|---|---|---|---|"]
    for layer, rows in found.fillna({WIDTH: 0, ENCODER: "none"}).groupby(SETTINGS):
        lines.append(f"| {' | '.join([*_layer(layer), _spread(rows['panels'], 3)])} |")
    return [*lines, ""]


def run(study: str, seeds: int, work: Path) -> pd.DataFrame:
    """Run or continue a study's sweep; its trials, with what their networks are worth."""
    (work / study).mkdir(parents=True, exist_ok=True)
    out = work / f"paper-table-{study}"
    with ray_session(3):
        store, settings = make_store(STUDIES[study], work / study)
        if out.exists():
            run_sweep(str(store), str(out), None, resume=True)
        else:
            own = [f"experiment.{each}" for each in settings if not each.startswith("model.pathway")]
            own += [f"parameters.seed={{choice: {list(range(seeds))}}}", "experiment.split.kind=none", *ALL]
            own += ["experiment.validation={every: 10, folds: 2}", "max_concurrent=1"]
            run_sweep(str(store), str(out), SweepConfig.load(PAPER, own))
    place = Location.of(out)
    trials = rows_of(read_records(place), read_sweep(place))
    judge, activities = Judge(study, store, work / study), {}
    for row, trial, status in trials[["trial", "status"]].itertuples():
        if status == "finished":
            model = TADVAE.from_pretrained(str(trial_folder(place, trial) / "run"))
            activities[row] = judge.activities(model)
            for name, value in judge.scores(model).items():
                trials.loc[row, name] = value
    for _, rows in trials.groupby(SETTINGS, dropna=False):
        own = [activities[row] for row in rows.index if row in activities]
        trials.loc[rows.index, "replicability"] = replicability(own)
    shutil.rmtree(out)
    return trials


def run_panels(place: Path, seeds: int, work: Path) -> None:
    """Store the scores of the same grid of settings on panels, each when it is known."""
    config = SweepConfig.load(PAPER, ALL)
    rows = pd.read_csv(place).to_dict("records") if place.exists() else []
    known = {tuple(str(row[key]) for key in ("settings", "seed")) for row in rows}
    for seed, values in product(range(seeds), config.points()):
        settings = [f"{key}={value}" for key, value in config.settings(values).items()]
        if (" ".join(settings), str(seed)) in known:
            continue
        value = panels(settings, seed, work / "panel_transfer")
        row = {key: values.get(key) for key in SETTINGS}
        rows.append({**row, "settings": " ".join(settings), "seed": seed, "panels": round(value, 4)})
        pd.DataFrame(rows).to_csv(place, index=False)
        print(f"{' '.join(settings)}, halving {seed}: {value:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", nargs="*", choices=[*ABOUT, PANELS], default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "work")
    parser.add_argument("--out", type=Path, default=STORED)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for study in options.study:
        place = options.out / f"{study}.csv"
        if study == PANELS:
            run_panels(place, options.seeds, options.work)
        elif not place.exists():
            run(study, options.seeds, options.work).to_csv(place, index=False)
    if options.out.resolve() == STORED:
        write_page()


def write_page() -> None:
    """Write the page from what is stored."""
    lines = list(HEAD)
    for study in ABOUT:
        if (place := STORED / f"{study}.csv").exists():
            lines += section(study, pd.read_csv(place))
    if (place := STORED / f"{PANELS}.csv").exists():
        lines += panels_section(pd.read_csv(place))
    PAGE.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
