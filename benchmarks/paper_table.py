"""The paper's table: five maskings × three sizes × two encoders, by ``tadvae tune``.

    python benchmarks/paper_table.py --study norman_mcfaline --seeds 1
    python benchmarks/paper_table.py

The first runs a sweep on a study of ``studies.py`` (an interrupted one goes on) and stores its trials as
``benchmarks/results/paper_table/STUDY.csv``, the format of ``tadvae tune table``; both write
``docs/paper-table.md`` from all that is stored. ``simulated.csv`` was made on a GPU, by three seeds::

    tadvae tune run store --out sweep --paper --gpu 0.07 --set 'parameters.seed={choice: [0, 1, 2]}' \
        --set experiment.train.epochs=20 --set 'experiment.validation={every: 20, folds: 2}' \
        --set experiment.split.kind=none --set experiment.pathways.file=screens/pathways.gmt
    tadvae tune table sweep --out report --format csv
"""

import argparse
import shutil
from pathlib import Path

import pandas as pd
from scipy.stats import t
from studies import STUDIES, make_store

from pipelines.cluster.connection import ray_session
from tadvae.base.filesystem import Location
from tune.config import PAPER, SweepConfig
from tune.records import read_records, read_sweep
from tune.sweep import run_sweep
from tune.table import rows_of

ROOT = Path(__file__).resolve().parents[1]
STORED, PAGE = ROOT / "benchmarks" / "results" / "paper_table", ROOT / "docs" / "paper-table.md"
MASKING, WIDTH, ENCODER = "model.pathway.masking", "model.pathway.d_embed", "model.encoder.kind"
WORK = ROOT / "benchmarks" / "work"
ABOUT = {
    "simulated": "two simulated screens (5,100 cells, 600 genes each, 24 pathways), 20 epochs, one H100",
    "norman_mcfaline": "Norman 2019 and McFaline-Figueroa 2023 (5,961 cells), 10 epochs, two cores",
    "datlinger": "Datlinger 2021 (7,500 cells), 10 epochs, two cores",
}
HEAD = [
    "# The paper's table",
    "",
    "Masking × embedding × encoder, every combination with every seed, by `tadvae tune run --paper`; the "
    "whole command is in `benchmarks/paper_table.py`, which wrote this page. Half of the combinations of "
    "targets are held out for validation. Networks are compared: the regression of mean effects, the same in "
    "all trials, has no part in the predictions. Mean (standard deviation) over seeds; ± after a difference: "
    "95% interval of its mean, paired by seed.",
    "",
]
COLUMNS = "masking | width/heads | encoder | Pearson-Δ | L2 | Pearson-Δ less `linear`'s | seconds a trial"


def section(study: str, trials: pd.DataFrame) -> list[str]:
    """Lines of one study's part of the page."""
    done = trials[trials["status"] == "finished"].fillna({WIDTH: 0, ENCODER: "none"})
    linear = done[done[MASKING] == "linear"].set_index("seed")
    lines = [f"## {study}", "", f"{ABOUT[study][0].upper()}{ABOUT[study][1:]}; {len(done)} trials.", ""]
    lines += [f"| {COLUMNS} |", "|---|---|---|---|---|---|---|"]
    for (masking, encoder, width), rows in done.groupby([MASKING, ENCODER, WIDTH]):
        own = rows.set_index("seed")
        gap = (own["val_pearson_delta"] - linear["val_pearson_delta"]).dropna()
        size = f"{width:.0f}/{width / 16:.0f}" if width else "–"
        less = "" if masking == "linear" else f"{gap.mean():+.3f}"
        if less and len(gap) > 1:
            less += f" ± {t.ppf(0.975, len(gap) - 1) * gap.sem():.3f}"
        pearson, l2 = own["val_pearson_delta"], own["val_l2"]
        lines.append(
            f"| `{masking}` | {size} | {encoder} | {_spread(pearson, 3)} | {_spread(l2, 2)} | {less} | "
            f"{own['seconds'].mean():.0f} |"
        )
    return [*lines, "", *verdict(done, linear)]


def _spread(values: pd.Series, digits: int) -> str:
    """Mean, and with several seeds their standard deviation."""
    mean = f"{values.mean():.{digits}f}"
    return f"{mean} ({values.std():.{digits}f})" if len(values) > 1 else mean


def verdict(done: pd.DataFrame, linear: pd.DataFrame) -> list[str]:
    """What the table says, in two sentences."""
    attention = done[done[MASKING] != "linear"]
    means = attention.groupby([MASKING, ENCODER, WIDTH])["val_pearson_delta"].mean()
    masking, encoder, width = means.idxmax()
    both = attention.pivot_table("val_pearson_delta", [MASKING, WIDTH, "seed"], ENCODER)
    gain = both["inducing"] - both["none"]
    return [
        f"`linear` has {linear['val_pearson_delta'].mean():.3f}; the best of {len(means)} layers with "
        f"attention is `{masking}`, {width:.0f} wide, encoder {encoder}, with {means.max():.3f}. The encoder "
        f"changes Pearson-Δ by {gain.mean():+.4f} (standard error {gain.sem():.4f}, {len(gain)} pairs).",
        "",
    ]


def run(study: str, seeds: int) -> None:
    """Run or continue a study's sweep, and store its trials."""
    work = WORK / study
    work.mkdir(parents=True, exist_ok=True)
    out = WORK / f"paper-table-{study}"
    with ray_session(3):
        store, settings = make_store(STUDIES[study], work)
        if out.exists():
            run_sweep(str(store), str(out), None, resume=True)
        else:
            own = [f"experiment.{each}" for each in settings if not each.startswith("model.pathway")]
            own += [f"parameters.seed={{choice: {list(range(seeds))}}}", "experiment.split.kind=none"]
            own += ["experiment.validation={every: 10, folds: 2}"]
            run_sweep(str(store), str(out), SweepConfig.load(PAPER, own))
    place = Location.of(out)
    rows_of(read_records(place), read_sweep(place)).to_csv(STORED / f"{study}.csv", index=False)
    shutil.rmtree(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", choices=[each for each in ABOUT if each != "simulated"])
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    if options.study is not None:
        run(options.study, options.seeds)
    lines = list(HEAD)
    for file in sorted(STORED.glob("*.csv")):
        lines += section(file.stem, pd.read_csv(file))
    PAGE.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
