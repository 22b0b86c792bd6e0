"""Every baseline by plain loops and closed forms, written from its definition alone."""

import numpy as np


def by_definition(name, profiles, query):
    control, targets, means = profiles.control.tolist(), profiles.targets, profiles.means.tolist()
    genes, wanted = range(len(control)), set(query)

    def average(rows):
        return [sum(row[g] for row in rows) / len(rows) for g in genes]

    overall = average(means)
    single = {t[0]: means[i] for i, t in enumerate(targets) if len(t) == 1}
    if name == "no_change":
        return control
    if name == "mean":
        return overall
    if name == "matching_mean":
        if any(t in single for t in wanted):
            return average([single.get(t, overall) for t in wanted])
        related = [means[i] for i, t in enumerate(targets) if wanted.intersection(t)]
        return average(related) if related else overall
    unknown = average(list(single.values()))
    return [control[g] + sum(single.get(t, unknown)[g] - control[g] for t in wanted) for g in genes]


def ridge_by_definition(profiles, queries):
    """Refit without each combination in turn, in the primal form, over the whole grid of penalties."""
    control = profiles.control
    single = {t[0]: m - control for t, m in zip(profiles.targets, profiles.means, strict=True) if len(t) == 1}
    unknown = sum(single.values()) / len(single)
    pairs = [
        (sum(single[t] for t in key), mean - control)
        for key, mean in zip(profiles.targets, profiles.means, strict=True)
        if len(key) > 1 and all(t in single for t in key)
    ]
    if len(pairs) < 4:  # too few to learn from: plain addition
        rows = [control + sum(single.get(t, unknown) for t in set(query)) for query in queries]
        return np.array(rows), (None, None)
    a, y = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    n = len(a)
    # Ridge on genes only ever moves inside the span of the sums: its coordinates there are enough.
    axes = np.linalg.qr(a.T)[0]  # (G, min(G, n))
    width = axes.shape[1]
    unit = np.sum((a - a.mean(axis=0)) ** 2) / n

    def ridge(x, z, at, penalty):
        """Z regressed on x with a free intercept, evaluated at ``at``."""
        x, at = x @ axes, at @ axes
        xc, zc = x - x.mean(axis=0), z - z.mean(axis=0)
        w = (
            np.linalg.inv(xc.T @ xc + penalty * np.eye(width)) @ xc.T @ zc
            if np.isfinite(penalty)
            else 0 * xc.T @ zc
        )
        return z.mean(axis=0) + (at - x.mean(axis=0)) @ w

    best, error = (None, None), np.sum((y - a) ** 2)
    for penalty in [np.inf] + [10.0 ** (k / 4) * unit for k in range(8, -13, -1)]:
        left_y, left_a = np.zeros_like(y), np.zeros_like(a)
        for i in range(n):
            rest = [j for j in range(n) if j != i]
            left_y[i] = y[i] - ridge(a[rest], y[rest], a[i], penalty)
            left_a[i] = a[i] - ridge(a[rest], a[rest], a[i], penalty)
        scale = np.linalg.lstsq(left_a.reshape(-1, 1), left_y.reshape(-1), rcond=None)[0][0]
        loss = np.sum((left_y - scale * left_a) ** 2)
        if loss < error:
            best, error = (scale, penalty), loss
    rows = []
    for query in queries:
        at = sum(single.get(t, unknown) for t in set(query))
        if len(set(query)) == 1 or best[0] is None:
            rows.append(control + at)
        else:
            scale, penalty = best
            rows.append(control + scale * at + ridge(a, y - scale * a, at, penalty))
    return np.array(rows), best


def linear_by_definition(profiles, queries, k=10, ridge=0.1):
    control = profiles.control
    expression = np.column_stack([control, *profiles.means])  # (G, 1 + N)
    centred = expression - expression.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)  # PCA by the covariance, not the SVD
    axes = vectors[:, ::-1][:, :k]
    scores = centred @ axes  # (G, k)
    width = scores.shape[1]

    def embed(key):
        total = np.zeros(width)
        for target in set(key):
            gene = profiles.target_gene.get(target)
            if gene in profiles.genes:
                total += scores[profiles.genes.index(gene)]
        return total

    y = (profiles.means - control).T  # (G, N)
    b = y.mean(axis=1, keepdims=True)
    p = np.array([embed(key) for key in profiles.targets])  # (N, k)
    eye = ridge * np.eye(width)
    w = np.linalg.inv(scores.T @ scores + eye) @ scores.T @ (y - b) @ p @ np.linalg.inv(p.T @ p + eye)
    return np.array([control + b[:, 0] + scores @ w @ embed(query) for query in queries])
