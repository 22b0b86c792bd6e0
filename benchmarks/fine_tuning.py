"""Fine-tuning on a tenth of the targets of a new screen, against training from scratch.

    python benchmarks/fine_tuning.py [--case NAME] [--seeds N] [--former MODE …] [--out FOLDER]

A model is trained on former screens, with a fifth of their targets held out, and fine-tuned on a new screen
of which a tenth of the targets is in training. The other nine tenths are scored, and so are the held-out
targets of the former screens before and after the fine-tuning. The seed decides which targets are in
training, and the weights. The data folder is the environment variable TADVAE_DATA.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from studies import DATA

from pipelines.convert import convert
from tadvae.data.splits import TEST, VALIDATION
from tadvae.data.store_of_model import open_store
from tadvae.evaluation.bootstrap import paired_bootstrap_difference
from tadvae.model.predictor import Predictor
from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig
from tadvae.simulation.config import ScreenConfig, SimulationConfig
from tadvae.simulation.files import simulate_to
from tadvae.store.reader import Store
from tadvae.training.fit import fit
from tadvae.training.pretrained import Pretrained
from tadvae.training.validation import Validator

RESULTS = Path(__file__).parent / "results" / "fine_tuning"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "fine-tuning.md"
HEADING = "## Measured"
MOST_LOSS = 0.02
"""Largest relative loss on the former screens that was allowed."""
PARTS = {
    "new": "new screen, held-out targets",
    "new network": "the same, network alone",
    "former": "former screens, held-out targets",
    "former network": "the same, network alone",
}
CASES_IN_WORDS = {
    "simulated": "Two simulated screens that share targets: CRISPRa in one cell line, then CRISPRi in "
    "another with another panel",
    "norman to mcfaline": "Norman 2019 (K562, CRISPRa), then McFaline-Figueroa 2023 (three glioblastoma "
    "lines, CRISPRi)",
    "neurips to T cells": "NeurIPS 2023 signatures of drugs in B, myeloid and NK cells, then in T cells",
}
ABOUT = [
    "Written by `python benchmarks/fine_tuning.py`, which has the settings; do not edit. A small network",
    "(width 16) is trained on the former screens without a fifth of their targets, then fine-tuned on the",
    "new screen with a tenth of its targets; the reference is the same network trained on that tenth from",
    "scratch. Means over held-out groups and seeds; differences from the reference with 95% bootstrap",
    "intervals over groups.",
]
SHARE = 0.1
"""Share of the targets of the new screen that are in training."""
METRICS = ("pearson_delta", "l2")
NETWORK = [
    "model.pathway={d_embed: 16, n_heads: 2}",
    "model.causal={n_factors: 16, hidden: 32, targets: gene}",
    "model.decoder={d_gene: 16, hidden: 32}",
    "stream.bags_per_batch=8",
    "train.trackers=[]",
]
SIMULATED = SimulationConfig(
    n_genes=500,
    n_factors=6,
    n_pathways=24,
    n_targets=60,
    screens=(
        ScreenConfig(name="former", n_genes=400, n_singles=50, n_doubles=0, cells_per_condition=40),
        ScreenConfig(
            name="new",
            contexts=("SIMLINE2",),
            modality="CRISPRi",
            n_genes=350,
            n_singles=40,
            n_doubles=0,
            cells_per_condition=40,
        ),
    ),
)
ADDRESS = {"column": "condition", "control": "control", "separator": "+"}


def of_cells(name: str, file: str, modality: str) -> dict[str, Any]:
    spec = {"name": name, "path": str(DATA / "screens" / file), "modality": modality}
    return spec | {"perturbation": ADDRESS, "context": {"column": "cell_type"}}


def of_signatures(name: str) -> dict[str, Any]:
    path = str(DATA / "signatures" / f"neurips2023_{name}.h5ad")
    spec = {"name": name, "path": path, "kind": "signatures", "values": "effects"}
    return spec | {"modality": "drug", "perturbation": {"column": "drug"}, "context": {"value": name}}


CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]] = {
    "simulated": ([], [], ["train.epochs=15"]),
    "norman to mcfaline": (
        [of_cells("norman19", "norman19_k562_crispra.h5ad", "CRISPRa")],
        [of_cells("mcfaline23", "mcfaline23_gbm_crispri.h5ad", "CRISPRi")],
        ["train.epochs=15"],
    ),
    "neurips to T cells": (
        [of_signatures(name) for name in ("b", "myeloid", "nk")],
        [of_signatures("t")],
        ["train.epochs=15", "preprocess.n_top_genes=1000"],
    ),
}
"""Former screens, new screen, settings."""


def stores(case: str, folder: Path) -> tuple[Store, Store, list[str]]:
    """Stores of the former screens and of the new one, and the settings of their pathways."""
    former, new, _ = CASES[case]
    settings: list[str] = []
    reference = "human"
    if case == "simulated":
        spec = yaml.safe_load(simulate_to(folder / "screens", SIMULATED).read_text())
        entries = [each | {"path": str(folder / "screens" / each["path"])} for each in spec["datasets"]]
        former, new, reference = entries[:1], entries[1:], "none"
        settings = [f"pathways.file={folder / 'screens' / 'pathways.gmt'}"]
    found = []
    for name, datasets in (("former", former), ("new", new)):
        text = yaml.safe_dump({"genes": {"reference": reference}, "datasets": datasets})
        (folder / f"{name}.yaml").write_text(text)
        convert(str(folder / f"{name}.yaml"), str(folder / name))
        found.append(Store.open(str(folder / name)))
    return found[0], found[1], settings


def scores(store: Store, groups: pd.DataFrame, model: TADVAE, alone: bool = False) -> dict[str, np.ndarray]:
    """Scores of all held-out groups, of the whole model or of its network alone."""
    held = groups.assign(part=groups["part"].where(groups["part"] != TEST, VALIDATION))
    effects = None if alone else model.effects
    validator = Validator(store, held, model.vocabulary, model.config, effects)
    return validator.scores(Predictor(model.module, model.vocabulary, model.config, effects))


def run(case: str, seed: int, former_modes: Sequence[str], folder: Path) -> dict[str, Any]:
    """One seed of a case: every way of learning the new screen."""
    former, new, settings = stores(case, folder)
    settings = [*NETWORK, *CASES[case][2], *settings, f"seed={seed}"]
    before = ExperimentConfig.load(None, [*settings, f"split={{kind: single, folds: 5, seed: {seed}}}"])
    clock = time.process_time()
    old, old_groups = fit(former, before)
    old.save_pretrained(folder / "old")
    targets = sorted({t for each in new.perturbations["targets"] for t in each})
    order = np.random.default_rng(seed).permutation(len(targets))
    held = [targets[i] for i in order[max(2, round(SHARE * len(targets))) :]]
    names = [n for n in new.perturbations["name"] if set(n.split("+")) & set(held)]
    split = [f"split={json.dumps({'kind': 'explicit', 'test': names})}"]
    result: dict[str, Any] = {"targets": len(targets), "in_training": len(targets) - len(held)}
    result["former"] = {"before": scores(former, old_groups, old)}
    result["former network"] = {"before": scores(former, old_groups, old, alone=True)}
    scratch, groups = fit(new, ExperimentConfig.load(None, [*settings, *split]))
    result["new"] = {"from scratch": scores(new, groups, scratch)}
    result["new network"] = {"from scratch": scores(new, groups, scratch, alone=True)}
    base = Pretrained.load(str(folder / "old")).settings()
    own = [each for each in settings if not each.startswith("model.")]
    for mode in former_modes:
        kind, _, anchor = mode.partition(" ")
        more = [f"train.former={kind}", *([f"train.anchor={anchor}"] if anchor else [])]
        model, groups = fit(new, ExperimentConfig.load(None, [*own, *split, *more], base))
        model.save_pretrained(folder / "fine")
        for label, alone in (("", False), (" network", True)):
            opened = open_store(str(folder / "new"), model.vocabulary)
            result[f"new{label}"][mode] = scores(opened, groups, model, alone)
            opened = open_store(str(folder / "former"), model.vocabulary)
            result[f"former{label}"][mode] = scores(opened, old_groups, model, alone)
    result["seconds"] = round(time.process_time() - clock, 1)
    return result


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds and groups, and differences from the reference with intervals over groups."""
    found: dict[str, Any] = {name: seeds[0][name] for name in ("targets", "in_training")}
    found["seconds_per_seed"] = round(float(np.mean([each["seconds"] for each in seeds])), 1)
    for part in ("new", "new network", "former", "former network"):
        reference = "before" if part.startswith("former") else "from scratch"
        found[part] = {}
        for method in seeds[0][part]:
            found[part][method] = {}
            for metric in METRICS:
                values, others = (
                    np.concatenate([each[part][name][metric] for each in seeds])
                    for name in (method, reference)
                )
                each_seed = [float(np.nanmean(each[part][method][metric])) for each in seeds]
                minus = paired_bootstrap_difference(values, others)
                found[part][method][metric] = {
                    "mean": float(np.nanmean(values)),
                    "of_seeds": [round(value, 4) for value in each_seed],
                    "minus_reference": minus._asdict(),
                }
    return found


def section(stored: dict[str, Any]) -> list[str]:
    """Lines of one case: what fine-tuning gives on the new screen, and what it costs on the former ones."""
    about, n = stored["about"], stored["in_training"]
    lines = [
        f"### {stored['case']}",
        "",
        f"{CASES_IN_WORDS[stored['case']]}. {n} of {stored['targets']} targets of the new screen in "
        f"training, {about['seeds']} seeds, {stored['seconds_per_seed']:.0f} s of processor time per seed.",
        "",
        "| what is scored | model | Pearson-Δ | difference | L2 | difference |",
        "|---|---|---|---|---|---|",
    ]
    for part, words in PARTS.items():
        for method, scores in stored[part].items():
            cells = [words, method]
            for metric, digits in zip(METRICS, (3, 2), strict=True):
                score = scores[metric]
                cells.append(f"{score['mean']:.{digits}f}")
                minus = score["minus_reference"]
                reference = method in ("from scratch", "before")
                low, high = (f"{minus[end]:+.{digits}f}" for end in ("low", "high"))
                cells.append("" if reference else f"{minus['mean']:+.{digits}f} [{low}, {high}]")
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *verdict(stored), ""]


def verdict(stored: dict[str, Any]) -> list[str]:
    """What was asked of fine-tuning, in two sentences."""
    method = "frozen"
    new, before = stored["new"], stored["former"]["before"]
    gains = [
        a - b
        for a, b in zip(*(new[m]["pearson_delta"]["of_seeds"] for m in (method, "from scratch")), strict=True)
    ]
    change = stored["former"][method]["l2"]["mean"] / before["l2"]["mean"] - 1.0
    loss = 1.0 - stored["former"][method]["pearson_delta"]["mean"] / before["pearson_delta"]["mean"]
    better = new[method]["pearson_delta"]["minus_reference"]["low"] > 0.0
    kept = max(change, loss) <= MOST_LOSS
    return [
        f"With the default (`{method}`), held-out targets of the new screen are predicted "
        f"{'better' if better else 'not better'} than from scratch (Pearson-Δ higher in "
        f"{sum(gain > 0 for gain in gains)} of {len(gains)} seeds); on the former screens L2 changes by "
        f"{change:+.1%} and Pearson-Δ by {-loss:+.1%}, {'within' if kept else 'more than'} the "
        f"{MOST_LOSS:.0%} that were allowed.",
    ]


def write_page(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Write the measured part of the page from the stored scores."""
    stored = [json.loads(place.read_text()) for place in sorted(results.glob("*.json"))]
    text = page.read_text(encoding="utf-8").split(HEADING)[0]
    lines = [HEADING, "", *ABOUT, ""]
    for each in stored:
        lines += section(each)
    page.write_text(text + "\n".join(lines).rstrip() + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--former", nargs="+", default=["frozen", "anchored 1", "free"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for case in options.case or CASES:
        place = options.out / f"{case.replace(' ', '_')}.json"
        if place.exists():
            print(f"{place}: already there", flush=True)
            continue
        seeds = []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                seeds.append(run(case, seed, options.former, Path(folder)))
            print(case, seed, seeds[-1]["seconds"], flush=True)
            for part in ("new", "new network", "former", "former network"):
                for method, values in seeds[-1][part].items():
                    shown = "  ".join(f"{m} {np.nanmean(values[m]):.4f}" for m in METRICS)
                    print(f"  {part:<15}{method:<14}{shown}", flush=True)
        options.out.mkdir(parents=True, exist_ok=True)
        about = {"script": "fine_tuning.py", "seeds": options.seeds, "share": SHARE}
        about |= {"settings": [*NETWORK, *CASES[case][2]]}
        text = json.dumps({"about": about, "case": case, **summary(seeds)}, indent=1) + "\n"
        place.write_text(text)
    if options.out.resolve() == RESULTS.resolve():
        write_page()


if __name__ == "__main__":
    main()
