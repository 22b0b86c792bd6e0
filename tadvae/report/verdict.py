"""Is the model better than the best baseline? One comparison per metric and kind of held-out group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from tadvae.evaluation.bootstrap import Interval, paired_bootstrap_difference
from tadvae.evaluation.evaluate import CEILING, METHOD, NULL, WIDTH
from tadvae.evaluation.metrics import HIGHER_IS_BETTER
from tadvae.store.manifest import GROUP_KEYS

NAMED = 3
"""Comparisons that a sentence names of each verdict; the others are counted."""


@dataclass(frozen=True)
class AgainstBaseline:
    """The model and the best baseline by one metric, on the held-out groups of one category.

    Attributes
    ----------
    category, metric
    baseline
        The method other than the model whose mean is best.
    own, best
        Mean scores of the model and of this baseline, over groups that both have.
    n
        Number of these groups.
    gain
        Paired difference over groups with its 95% bootstrap interval, in units of the metric; above zero the
        model is better, whichever direction of the metric is good.
    """

    category: str
    metric: str
    baseline: str
    own: float
    best: float
    n: int
    gain: Interval

    @property
    def verdict(self) -> Literal["better", "level", "worse"]:
        """``better`` or ``worse`` if the interval excludes zero, else ``level``."""
        return "better" if self.gain.low > 0 else "worse" if self.gain.high < 0 else "level"

    @property
    def percent(self) -> Interval | None:
        """The gain in percent of the baseline's score; None where that is zero and the model's is not."""
        size = abs(self.best)
        if size == 0.0:
            return Interval(0.0, 0.0, 0.0) if not any(self.gain) else None
        return Interval(*(100.0 * value / size for value in self.gain))


def against_baselines(scores: pd.DataFrame) -> list[AgainstBaseline]:
    """Compare the model with the best baseline by every metric with a direction.

    Parameters
    ----------
    scores
        One row per (group, method, metric), as in a run's ``evaluation/all.parquet``. The best baseline is
        chosen on the same groups, which favours it.

    Returns
    -------
    By category and metric in the order of the scores. The width of intervals is no comparison: baselines
    have none.
    """
    found = []
    for category, part in scores.groupby("category", sort=False):
        for metric, table in part.groupby("metric", sort=False):
            if metric not in HIGHER_IS_BETTER or metric == WIDTH:
                continue
            wide = table.pivot_table("value", GROUP_KEYS, "method")
            rivals = wide.drop(columns=[METHOD, CEILING, NULL], errors="ignore")
            if METHOD not in wide or rivals.empty:
                continue
            sign = 1.0 if HIGHER_IS_BETTER[str(metric)] else -1.0
            name = str((sign * rivals.mean()).idxmax())
            both = wide[[METHOD, name]].dropna()
            if both.empty:
                continue
            gain = paired_bootstrap_difference(sign * both[METHOD], sign * both[name])
            own, best = float(both[METHOD].mean()), float(both[name].mean())
            found.append(AgainstBaseline(str(category), str(metric), name, own, best, len(both), gain))
    return found


def verdict(found: Sequence[AgainstBaseline]) -> str:
    """What the comparisons say, in one sentence."""
    chosen = {
        name: sorted((each for each in found if each.verdict == name), key=_size)
        for name in ("better", "level", "worse")
    }
    several = len({each.category for each in found}) > 1
    return (
        f"{METHOD} is better than the best baseline in {len(chosen['better'])} of {len(found)} comparisons"
        f"{_listed(chosen['better'], several)}, level in {len(chosen['level'])}, and worse in "
        f"{len(chosen['worse'])}{_listed(chosen['worse'], several)}."
    )


def _size(comparison: AgainstBaseline) -> float:
    """Larger relative differences come first."""
    return 0.0 if comparison.percent is None else -abs(comparison.percent.mean)


def _listed(chosen: Sequence[AgainstBaseline], with_category: bool) -> str:
    words = []
    for each in chosen[:NAMED]:
        where = f" of {each.category}" if with_category else ""
        words.append(f"{each.metric}{where} by {_how_much(each)}")
    more = f" and {len(chosen) - NAMED} more" if len(chosen) > NAMED else ""
    return f" ({', '.join(words)}{more})" if words else ""


def _how_much(comparison: AgainstBaseline) -> str:
    """The size of a difference with its interval, which is above zero: the verdict says its direction."""
    given = comparison.percent or comparison.gain
    sign = -1.0 if comparison.verdict == "worse" else 1.0
    low, high = sorted((sign * given.low, sign * given.high))
    unit = "" if comparison.percent is None else "%"
    return f"{sign * given.mean:.3g}{unit} [{low:.3g}, {high:.3g}]"


def _in_units(comparison: AgainstBaseline) -> Interval:
    """Score of the model less that of the baseline, with the sign of the metric itself."""
    mean, low, high = comparison.gain
    if HIGHER_IS_BETTER[comparison.metric]:
        return comparison.gain
    return Interval(-mean, -high, -low)


def table(found: Sequence[AgainstBaseline]) -> pd.DataFrame:
    """The comparisons as a table; ``difference`` is the model less the baseline, in units of the metric."""
    rows = [
        {
            "held out": each.category,
            "metric": each.metric + (" ↑" if HIGHER_IS_BETTER[each.metric] else " ↓"),
            "groups": each.n,
            METHOD: each.own,
            "best baseline": each.baseline,
            "its score": each.best,
            **dict(zip(("difference", "low", "high"), _in_units(each), strict=True)),
            "verdict": each.verdict,
        }
        for each in found
    ]
    return pd.DataFrame(rows)
