"""Every strategy, value mode, choice of tokens and encoder against dense references of their equations."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from pydantic import ValidationError
from ragged import CORNERS, Problem, problems
from reference_attention import WITHOUT_TOKENS, attention
from reference_attention import activity as reference

from tadvae.nn.encoder import EncoderConfig
from tadvae.nn.strategies.base import STRATEGIES, PathwayConfig

STRATEGY = {
    "hard": {},
    "soft, members": {"masking": "soft", "gate_noise": 0.5},
    "soft, all": {"masking": "soft", "candidates": "all", "gate_noise": 0.5},
    "soft_log": {"masking": "soft_log", "candidates": 2, "gate_noise": 0.5},
    "none": {"masking": "none"},
    "members": {"masking": "members"},
    "linear": {"masking": "linear"},
}
GRID = [
    (strategy, value_mode, tokens, encoder)
    for strategy, value_mode, tokens, encoder in itertools.product(
        STRATEGY, ("scale", "film", "bins"), ("expressed", "all"), ("none", "full", "inducing")
    )
    if strategy != "linear" or encoder == "none"
]
FURTHER = {
    "one head": {"d_embed": 4, "n_heads": 1},
    "four heads": {"d_embed": 8, "n_heads": 4},
    "learned queries": {"pathway_init": "learned"},
    "soft_log, all": {"masking": "soft_log", "candidates": "all"},
    "agreement": {"masking": "agreement"},
    "linear, leaking": {"masking": "linear", "leak": 0.3},
    "linear, dense, all tokens": {"masking": "linear", "leak": 1.0, "tokens": "all"},
}
SEEDED = settings(
    max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
FULL = EncoderConfig(kind="full", n_layers=1)


def config_of(**options):
    return PathwayConfig(
        **{"masking": "hard", "d_embed": 8, "n_heads": 2, "n_bins": 4, "bins_max": 5.3} | options
    )


def derivatives(activity, layer, cells, seed):
    """Gradients of a random sum of the activities, by parameter name; None counts as zero."""
    weight = torch.randn(activity.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    leaves = {**dict(layer.named_parameters()), "values": cells.values}
    loss = (activity * weight.to(activity.dtype)).sum()
    found = torch.autograd.grad(loss, leaves.values(), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }


def assert_same(found, expected, tolerance, what):
    assert not found.isnan().any(), what
    error = (found.double() - expected).abs().max() if expected.numel() else torch.zeros(())
    scale = expected.abs().max().clamp(min=1.0) if expected.numel() else 1.0
    assert error <= tolerance * scale, f"{what}: off by {error:.3g}, scale {scale:.3g}"


def check(problem, config, encoder=None):
    """Forward and gradients: single and double precision, by the kernels and by torch."""
    layer = problem.layer(config, encoder).double()
    cells = problem.packed()
    expected = reference(layer, problem.mask, cells)
    gradients = derivatives(expected, layer, cells, problem.seed)
    for dtype, kernel, tolerance in (
        (torch.float64, "numba", 1e-9),
        (torch.float64, "torch", 1e-9),
        (torch.float32, "numba", 1e-5),
    ):
        cells = problem.packed(dtype)
        layer.to(dtype)  # rounds in place, and comes last: a copy would take longer than all else
        layer.numba = kernel == "numba"
        activity = layer(cells)
        assert activity.shape == (len(problem.cells), len(problem.mask))
        assert activity.dtype == dtype
        assert_same(activity, expected, tolerance, f"activity by {kernel}, {dtype}")
        for name, found in derivatives(activity, layer, cells, problem.seed).items():
            assert_same(found, gradients[name], tolerance, f"gradient of {name} by {kernel}, {dtype}")


@pytest.mark.parametrize(("strategy", "value_mode", "tokens", "encoder"), GRID)
@settings(SEEDED, max_examples=4)
@example(CORNERS)
@given(problems())
def test_equation(strategy, value_mode, tokens, encoder, problem):
    config = config_of(value_mode=value_mode, tokens=tokens, **STRATEGY[strategy])
    check(problem, config, EncoderConfig(kind=encoder, n_layers=2, n_inducing=3))


@pytest.mark.parametrize("name", FURTHER)
@SEEDED
@example(CORNERS)
@given(problems())
def test_equation_of_further_settings(name, problem):
    check(problem, config_of(**FURTHER[name]))


@pytest.mark.parametrize("strategy", STRATEGY)
def test_equation_without_tokens_or_members(strategy):
    config = config_of(**STRATEGY[strategy])
    check(Problem(CORNERS.mask, [[0]], [(0, []), (0, [])], 1), config)
    check(Problem(np.zeros((2, 3), bool), [[0, 1]], [(0, [(1, 3.0)])], 2), config)


@pytest.mark.parametrize("encoder", [None, FULL], ids=["no encoder", "encoder"])
@pytest.mark.parametrize("strategy", [*STRATEGY, "linear, leaking", "agreement"])
@SEEDED
@example(CORNERS)
@given(problems())
def test_contributions_are_exact(strategy, encoder, problem):
    options = STRATEGY.get(strategy) or FURTHER.get(strategy) or {}
    masking = options.get("masking")
    if masking in WITHOUT_TOKENS and encoder is not None:
        return
    layer, cells = problem.layer(config_of(tokens="all", **options), encoder).double(), problem.packed()
    dense = WITHOUT_TOKENS.get(masking, attention)(layer, problem.mask, cells)[1]
    found = torch.zeros_like(dense)
    parts = layer.contributions(cells)
    at = parts.cell, parts.pathway, parts.gene
    assert len(set(zip(*(index.tolist() for index in at), strict=True))) == len(parts.value)
    torch.testing.assert_close(found.index_put(at, parts.value), dense, rtol=0, atol=1e-11)
    torch.testing.assert_close(dense.sum(2), layer(cells) - layer.bias, rtol=0, atol=1e-11)
    for p in range(len(problem.mask)):
        one = layer.contributions(cells, p)
        assert (one.pathway == p).all()
        assert torch.isin(one.gene, layer.reads(p)).all()
        alone = torch.zeros_like(dense[:, p]).index_put((one.cell, one.gene), one.value)
        torch.testing.assert_close(alone, dense[:, p], rtol=0, atol=1e-11)


def share_inside(layer, problem):
    """Share of each pathway's attention that its own members have: mean over cells and heads."""
    pairs = layer.pairs(problem.packed(torch.float32))
    weight = pairs.weight.detach().mean(1)  # (N,)
    member = torch.from_numpy(problem.mask)[pairs.pathway, pairs.gene]
    total = torch.zeros(len(problem.mask)).index_add_(0, pairs.pathway, weight)
    return torch.zeros(len(problem.mask)).index_add_(0, pairs.pathway, weight * member) / total


def large(n_genes=2000, n_pathways=60, seed=0):
    """Pathways of 5 to 29 genes, and cells that express 15% of the genes."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((n_pathways, n_genes), bool)
    for row in mask:
        row[rng.choice(n_genes, rng.integers(5, 30), replace=False)] = True
    cells = []
    for _ in range(6):
        genes = np.sort(rng.choice(n_genes, int(0.15 * n_genes), replace=False))
        cells.append((0, list(zip(genes.tolist(), rng.gamma(2.0, 0.7, len(genes)).tolist(), strict=True))))
    return Problem(mask, [list(range(n_genes))], cells, seed)


@pytest.mark.parametrize("candidates", [20, 200, "all"])
@pytest.mark.parametrize("prior_mass", [0.9, 0.6])
def test_soft_log_starts_inside_the_pathways(candidates, prior_mass):
    """Calibrated to size: with equal logits the share is exact; with random ones it is near it."""
    problem = large()
    config = config_of(
        masking="soft_log", candidates=candidates, prior_mass=prior_mass, gate_noise=0.0, tokens="all"
    )
    layer = problem.layer(config)
    with torch.no_grad():
        layer.w_query.weight.zero_()
        layer.mask.copy_(layer.start())
    mass = share_inside(layer, problem)
    members, others = layer.edges.size.numpy(), layer.edges.n_candidates().numpy()
    floor = members / (members + others)  # a candidate never starts above a member
    np.testing.assert_allclose(mass, np.maximum(prior_mass, floor), rtol=1e-3)
    torch.manual_seed(1)
    layer.w_query.reset_parameters()
    again = share_inside(layer, problem)
    assert abs(again.mean() - mass.mean()) < 0.02


def test_the_paper_soft_mask_hardly_prefers_members():
    """The reason for soft_log: with W = M + ε over all genes, members get about their share of the genes."""
    problem = large()
    layer = problem.layer(config_of(masking="soft", candidates="all", tokens="all"))
    mass = share_inside(layer, problem)
    uniform = layer.edges.size / problem.mask.shape[1]
    assert ((mass / uniform - 1).abs() < 0.5).all()


@pytest.mark.parametrize("masking", ["soft", "soft_log"])
def test_learned_edges(masking):
    layer = CORNERS.layer(config_of(masking=masking, candidates="all"))
    with torch.no_grad():
        layer.mask.copy_(layer.start())
    assert layer.learned_edges().empty
    edge = {
        (int(p), int(g)): e
        for e, (p, g) in enumerate(zip(layer.edges.pathway, layer.edges.gene, strict=True))
    }
    with torch.no_grad():
        layer.mask[edge[0, 4]] = 3.0
        layer.mask[edge[0, 1]] = -9.0
        layer.mask[edge[1, 3]] = 1.4  # a member that is more so
    table = layer.learned_edges()
    assert table[["pathway", "gene", "change"]].to_numpy().tolist() == [[0, 1, "removed"], [0, 4, "added"]]
    assert table["gate"].tolist() == pytest.approx(torch.sigmoid(torch.tensor([-9.0, 3.0])).tolist())
    assert table["gate_at_start"][0] == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item())


def test_a_log_gate_learns_an_edge():
    """A pathway's true activity follows a candidate gene alone; training opens its gate.

    (Under ``soft`` the same training stays at 0.4 of the variance: a gate that multiplies a logit cannot
    take the other genes out.)
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    mask = np.array([[1, 1, 1, 0, 0, 0]], bool)
    cells = [(0, list(enumerate(rng.gamma(2.0, 1.0, 6).tolist()))) for _ in range(64)]
    problem = Problem(mask, [list(range(6))], cells, 0)
    layer = problem.layer(config_of(masking="soft_log", candidates="all", value_mode="film"))
    packed = problem.packed(torch.float32)
    truth = packed.values.detach().view(64, 6)[:, 4]
    # queries and keys could find the gene too: here the gates must
    optimizer = torch.optim.Adam([layer.mask, layer.readout, layer.bias], lr=0.03)
    for _ in range(300):
        optimizer.zero_grad()
        loss = ((layer(packed)[:, 0] - truth) ** 2).mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * truth.var().item()
    table = layer.learned_edges()
    assert table["gene"].tolist()[:1] == [4]
    assert table["change"].tolist()[:1] == ["added"]


@pytest.mark.parametrize("strategy", [name for name in STRATEGY if name != "none"])
def test_without_a_token_of_its_own_the_activity_is_the_bias(strategy):
    layer = CORNERS.layer(config_of(**STRATEGY[strategy]))
    cells = CORNERS.packed(torch.float32)
    activity = layer(cells)
    sees = torch.zeros(CORNERS.mask.shape, dtype=torch.bool)
    sees[layer.edges.pathway, layer.edges.gene] = True
    expressed = torch.zeros(len(CORNERS.cells), CORNERS.mask.shape[1], dtype=torch.bool)
    expressed[cells.cell, cells.gene_ids] = True
    silent = ~(expressed[:, None] & sees[None]).any(2)  # (B, P)
    assert silent.sum() == {"soft, all": 4, "soft_log": silent.sum()}.get(strategy, 13)
    assert torch.equal(activity[silent], layer.bias.expand(len(activity), -1)[silent])
    assert not torch.isclose(activity, layer.bias.expand_as(activity))[~silent].any()
    activity[silent].sum().backward()
    for parameter in (p for p in (*layer.parameters(), cells.values) if p is not layer.bias):
        assert parameter.grad is None or not parameter.grad.any()


def test_a_lone_member_gets_all_attention():
    layer = CORNERS.layer(config_of()).double()
    activity = layer(CORNERS.packed())
    value = layer.gene[1] * 3.0 @ layer.w_value.weight.T  # cell 2 expresses gene 1 alone
    for pathway in (0, 3):
        torch.testing.assert_close(activity[2, pathway], value @ layer.readout[pathway] + layer.bias[pathway])


@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize("strategy", [name for name in STRATEGY if name != "linear"])
def test_large_values_do_not_overflow(strategy, kernel):
    cells = [(0, [(0, 1e4), (1, 1e4), (2, -1e4)]), (0, [(3, 3e4), (4, 1.0)])]
    problem = Problem(CORNERS.mask, CORNERS.panels, cells, 3)
    layer, packed = (
        problem.layer(config_of(kernel=kernel, **STRATEGY[strategy])),
        problem.packed(torch.float32),
    )
    activity = layer(packed)
    activity.sum().backward()
    assert activity.isfinite().all()
    assert all(p.grad.isfinite().all() for p in (*layer.parameters(), packed.values))


@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize("encoder", [None, FULL], ids=["no encoder", "encoder"])
def test_what_is_not_a_number_stays_visible(kernel, encoder):
    """A diverged parameter must not end as a plausible activity."""
    layer = CORNERS.layer(config_of(kernel=kernel), encoder)
    with torch.no_grad():
        layer.query[0, 0] = torch.nan
    activity = layer(CORNERS.packed(torch.float32))
    assert activity[0, 0].isnan()
    assert activity[0, 1].isfinite()


@pytest.mark.parametrize("encoder", [None, FULL], ids=["no encoder", "encoder"])
@pytest.mark.parametrize("strategy", STRATEGY)
@pytest.mark.parametrize("value_mode", ["scale", "film", "bins"])
def test_every_parameter_gets_a_gradient(strategy, value_mode, encoder):
    """DDP waits for every one, in a batch of empty cells too."""
    if strategy == "linear" and encoder is not None:
        return
    layer = CORNERS.layer(config_of(value_mode=value_mode, **STRATEGY[strategy]), encoder)
    for problem in (CORNERS, Problem(CORNERS.mask, [[0]], [(0, [])], 0)):
        layer.zero_grad()
        layer(problem.packed(torch.float32)).sum().backward()
        assert not [name for name, parameter in layer.named_parameters() if parameter.grad is None]


def test_weights_of_members_never_leak():
    layer, cells = CORNERS.layer(config_of(**FURTHER["linear, leaking"])), CORNERS.packed(torch.float32)
    layer(cells).sum().backward()
    leak, grad, x = layer.config.leak, layer.weight.grad, torch.zeros(layer.weight.shape[0])
    x.index_add_(0, cells.gene_ids, cells.values)
    inside = torch.from_numpy(CORNERS.mask).T
    torch.testing.assert_close(grad, torch.where(inside, 1.0, leak) * x[:, None])
    assert grad[5].any()  # a gene of no pathway speaks through the leak alone


@pytest.mark.parametrize("strategy", STRATEGY)
def test_half_precision_by_autocast(strategy):
    for encoder in (None,) if strategy == "linear" else (None, FULL, EncoderConfig(kind="inducing")):
        layer = CORNERS.layer(config_of(value_mode="bins", tokens="all", **STRATEGY[strategy]), encoder)
        cells = CORNERS.packed(torch.float32)
        expected = layer(cells)
        with torch.autocast("cpu", torch.bfloat16):
            activity = layer(cells)
            activity.float().sum().backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters())
        torch.testing.assert_close(activity.float(), expected, rtol=0.1, atol=0.1)


def test_strategies_of_today():
    assert set(STRATEGIES) == {"hard", "agreement", "members", "soft", "soft_log", "linear", "none"}
    small, wide = PathwayConfig(), PathwayConfig(d_embed=256, n_heads=16)
    assert small.d_embed // small.n_heads == wide.d_embed // wide.n_heads == 16  # the paper's


@pytest.mark.parametrize(
    ("options", "about"),
    [
        ({"d_embed": 10, "n_heads": 4}, "multiple of n_heads"),
        ({"masking": "sofd"}, "expected one of agreement"),
        ({"leak": 0.1}, "'leak' belongs to masking 'linear'"),
        ({"masking": "linear", "leak": 0.1, "value_mode": "film"}, "'leak' belongs to value_mode 'scale'"),
        ({"candidates": 5}, "'candidates' belongs to masking 'soft' and 'soft_log'"),
        ({"masking": "soft", "candidates": -1}, "0 or more"),
        ({"masking": "soft", "prior_mass": 0.5}, "'prior_mass' belongs to masking 'soft_log'"),
        ({"pathway_init": "text"}, "belong together"),
        ({"pathway_vectors": "text.tsv"}, "belong together"),
        ({"masking": "linear", "gene_vectors": "genes.tsv"}, "no embeddings"),
    ],
)
def test_config_refuses(options, about):
    with pytest.raises(ValidationError, match=about):
        PathwayConfig(**options)


def test_kernel_torch_uses_no_other(monkeypatch):
    """Not for the encoder's tokens either."""
    layer = CORNERS.layer(config_of(kernel="torch"), EncoderConfig(kind="inducing", n_inducing=3)).double()

    def called():
        raise AssertionError("a compiled kernel was asked for")

    monkeypatch.setattr("tadvae.nn.attention.kernels", called)
    layer(CORNERS.packed())
