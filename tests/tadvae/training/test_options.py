"""Options of training and of the loss that stand beside the defaults: counts, compiling, bfloat16."""

import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import gammaln

from tadvae.base.errors import UserError
from tadvae.data.batches import Batch
from tadvae.nn.causal import Intervention
from tadvae.nn.losses import expected_counts, l1_norm, negative_binomial
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.compiling import parts
from tadvae.training.fit import fit
from tadvae.training.learner import Learner, build_module

SMALL = [
    "model.causal.n_factors=4",
    "model.causal.hidden=6",
    "model.decoder.d_gene=5",
    "model.pathway.d_embed=8",
    "model.pathway.n_heads=2",
]


def learner(small_vocabulary, *settings):
    config = ExperimentConfig.load(None, [*SMALL, *settings])
    return Learner(config, build_module(config, small_vocabulary))


def losses(made, batch, steps=3):
    return [float(made.step(batch, 30.0, rank=0, number=n)["loss"]) for n in range(steps)]


def test_negative_binomial_is_scipys():
    rng = np.random.default_rng(0)
    counts, mean, r = rng.poisson(3.0, (5, 4)), rng.gamma(2.0, 2.0, (5, 4)), rng.gamma(2.0, 1.0, 4)
    expected = -stats.nbinom.logpmf(counts, r, r / (r + mean))
    tensors = [torch.from_numpy(np.asarray(a, np.float64)) for a in (counts, mean, np.log(r))]
    np.testing.assert_allclose(negative_binomial(*tensors), expected, rtol=1e-10)
    tensors[1].requires_grad_()
    tensors[2].requires_grad_()
    assert torch.autograd.gradcheck(lambda m, r: negative_binomial(tensors[0], m, r), tensors[1:])


def test_expected_counts_invert_the_normalisation():
    library = torch.tensor([2500.0, 40000.0], dtype=torch.float64)
    counts = torch.tensor([[3.0, 12.0], [50.0, 400.0]], dtype=torch.float64)
    values = torch.log1p(counts / library[:, None] * 1e4)
    np.testing.assert_allclose(expected_counts(values, library / 1e4), counts, rtol=1e-4)
    low = torch.tensor([[-3.0, 0.0]], dtype=torch.float64, requires_grad=True)
    found = expected_counts(low, torch.ones(1, dtype=torch.float64))
    assert (found > 0).all()
    found.sum().backward()
    assert (low.grad[0, 1] > 0.1).all()


def test_the_reconstruction_of_counts(small_vocabulary, small_batch, pack_small):
    """The errors of every count against scipy, from the counts that were normalised."""
    of_cells = Batch([bag for bag in small_batch.bags if bag.dataset == 0])
    made = learner(small_vocabulary, "loss.likelihood=negative_binomial")
    batch = pack_small(of_cells, torch.float32)
    with torch.no_grad():
        made.module.log_dispersion.normal_()
    (part,) = batch.datasets
    genes = torch.from_numpy(small_vocabulary.datasets[0].genes)
    encoded = batch.layout.fill(batch.tokens, made.module.columns).rows(part.encoded).values
    decoded = torch.rand(encoded.shape) * 2
    r = made.module.log_dispersion.detach()[genes].exp().double().numpy()
    library = np.concatenate([cells.total_counts for cells in of_cells.encoded])
    counts = np.expm1(encoded.double().numpy()) * library[:, None] / 1e4
    mean = expected_counts(decoded, part.per_unit).double().numpy()
    # scipy has no likelihood of broken counts; the fixture's are, so the gamma functions are written out
    log_p = gammaln(counts + r) - gammaln(r) - gammaln(counts + 1)
    log_p += r * np.log(r / (r + mean)) + counts * np.log(mean / (r + mean))
    got = made.module._errors(decoded, encoded, part.per_unit, genes)
    np.testing.assert_allclose(got.detach(), -log_p, rtol=1e-3, atol=1e-4)
    falling = losses(made, batch, 30)
    assert falling[-1] < falling[0]


@pytest.mark.slow
def test_counts_are_refused_where_there_are_none(store):
    entries = [entry.model_copy(update={"values": "log1p"}) for entry in store.manifest.datasets]
    normalised = Store(store.folder, store.manifest.model_copy(update={"datasets": entries}))
    config = ExperimentConfig.load(None, ["loss.likelihood=negative_binomial"])
    with pytest.raises(UserError, match="needs counts, but dataset"):
        fit(normalised, config)


def test_l1_norm():
    G = torch.tensor([[0.0, -2.0], [0.0, 0.0]])
    assert float(l1_norm(G)) == 2.0
    assert float(l1_norm(G, "mean")) == 0.5


@pytest.mark.slow
def test_compiling_changes_nothing_but_the_speed(small_vocabulary, small_batch, pack_small):
    batch = pack_small(small_batch, torch.float32)
    plain = losses(learner(small_vocabulary), batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own, while it compiles
        compiled = losses(learner(small_vocabulary, "train.compile=true"), batch)
    assert compiled == pytest.approx(plain, rel=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_where_compiling_fails_the_run_goes_on(small_vocabulary, small_batch, pack_small, capsys):
    batch = pack_small(small_batch, torch.float32)
    plain = losses(learner(small_vocabulary), batch)
    made = learner(small_vocabulary, "train.compile=true")

    def broken(*arguments, **options):
        raise torch._dynamo.exc.TorchDynamoException("no compiler here")

    for part in parts(made.module):
        part._compiled_call_impl = broken
    assert losses(made, batch) == plain
    said = "tadvae: train.compile: not compiled (no compiler here); the run goes on without.\n"
    assert capsys.readouterr().err == said


def test_bfloat16_stays_near(small_vocabulary, small_batch, pack_small):
    batch = pack_small(small_batch, torch.float32)
    plain = losses(learner(small_vocabulary), batch)
    half = losses(learner(small_vocabulary, "train.bf16=true"), batch)
    assert half == pytest.approx(plain, rel=0.05)
    assert half != plain


@pytest.mark.parametrize(("sign_prior", "first"), [("none", 1.0), ("start", -1.0), ("strict", -1.0)])
def test_sign_prior(small_vocabulary, sign_prior, first):
    """A silencing modality (index 1 of the fixture) moves the assigned factor down."""
    module = learner(small_vocabulary, f"model.causal.sign_prior={sign_prior}").module
    one = torch.tensor([1])
    silenced = Intervention(one, one, torch.tensor([0]), torch.tensor([0]), 1)
    assert torch.sign(module.causal.shifts(silenced, module.decoder.gene, 1.0)).unique().tolist() == [first]
    with torch.no_grad():
        module.causal.size.fill_(-3.0)  # what learning may do
    moved = torch.sign(module.causal.shifts(silenced, module.decoder.gene, 1.0)).unique().tolist()
    assert moved == ([-1.0] if sign_prior == "strict" else [-first])
