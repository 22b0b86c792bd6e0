"""The paper's table: five maskings × three sizes × two encoders, by ``tadvae tune``, three seeds.

The trials come from ``tadvae tune table``, and are stored as ``benchmarks/results/paper_table/STUDY.csv``;
this writes ``docs/paper-table.md``. The sweep, of a store of ``tadvae simulate``::

    tadvae tune run store --out sweep --paper --gpu 0.07 --set 'parameters.seed={choice: [0, 1, 2]}' \
        --set experiment.train.epochs=20 --set 'experiment.validation={every: 20, folds: 2}' \
        --set experiment.split.kind=none --set experiment.pathways.file=screens/pathways.gmt
    tadvae tune table sweep --out report --format csv
    python benchmarks/paper_table.py
"""

from pathlib import Path

import pandas as pd
from scipy.stats import t

ROOT = Path(__file__).resolve().parents[1]
STORED, PAGE = ROOT / "benchmarks" / "results" / "paper_table", ROOT / "docs" / "paper-table.md"
MASKING, WIDTH, ENCODER = "model.pathway.masking", "model.pathway.d_embed", "model.encoder.kind"
ABOUT = {"simulated": "two simulated screens (5,100 cells, 600 genes each, 24 pathways), one H100"}
HEAD = [
    "# The paper's table",
    "",
    "Masking × embedding × encoder, every combination with seeds 0, 1 and 2, by `tadvae tune run --paper`; "
    "the whole command is in `benchmarks/paper_table.py`, which wrote this page. Half of the combinations of "
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
        less = (
            "" if masking == "linear" else f"{gap.mean():+.3f} ± {t.ppf(0.975, len(gap) - 1) * gap.sem():.3f}"
        )
        pearson, l2 = own["val_pearson_delta"], own["val_l2"]
        lines.append(
            f"| `{masking}` | {size} | {encoder} | {pearson.mean():.3f} ({pearson.std():.3f}) | "
            f"{l2.mean():.2f} ({l2.std():.2f}) | {less} | {own['seconds'].mean():.0f} |"
        )
    return [*lines, "", *verdict(done, linear)]


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


def main() -> None:
    lines = list(HEAD)
    for file in sorted(STORED.glob("*.csv")):
        lines += section(file.stem, pd.read_csv(file))
    PAGE.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
