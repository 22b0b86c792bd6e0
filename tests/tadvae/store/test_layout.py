"""The stored order: every cell once, bags pure and never cut, and decided by the labels and a seed alone."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tadvae.store.cell_labels import CellLabels
from tadvae.store.layout import plan_layout
from tadvae.store.spec import LayoutSpec


def labels_of(context, perturbation):
    context, perturbation = np.asarray(context, np.int64), np.asarray(perturbation, np.int64)
    n = len(context)
    return CellLabels(
        source_row=np.arange(n),
        cell_id=np.array([f"c{i}" for i in range(n)]),
        context=context,
        contexts=["A549", "K562", "U87"],
        perturbation=perturbation,
        perturbations=[(), ("A",), ("B",), ("A", "B")],
        batch=np.full(n, ""),
        total_counts=None,
    )


cells = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=150)
sizes = st.integers(1, 40)


@settings(max_examples=100, deadline=None)
@given(cells, sizes, sizes, sizes, st.integers(0, 5))
def test_layout(groups, bag_size, row_group_rows, shard_rows, seed):
    labels = labels_of(*zip(*groups, strict=True))
    spec = LayoutSpec(row_group_rows=row_group_rows, shard_rows=shard_rows, seed=seed)
    layout = plan_layout(labels, spec, bag_size=bag_size, key=(0,))
    bags, n = layout.bags, len(groups)
    np.testing.assert_array_equal(np.sort(layout.position), np.arange(n))

    stored = np.argsort(layout.position)  # source rows in stored order
    assert bags["n_cells"].between(1, bag_size).all()
    assert bags["n_cells"].sum() == n
    bag = np.repeat(np.arange(len(bags)), bags["n_cells"])
    np.testing.assert_array_equal(labels.context[stored], bags["context"].to_numpy()[bag])
    np.testing.assert_array_equal(labels.perturbation[stored], bags["perturbation"].to_numpy()[bag])
    of_group = bags.groupby(["context", "perturbation"])["n_cells"]
    assert (of_group.max() - of_group.min() <= 1).all()  # no small rest of a large group
    assert (of_group.size() == np.ceil(of_group.sum() / bag_size)).all()

    # Bags of a row group, and row groups of a shard, follow each other from row 0 on.
    assert layout.shard_rows == bags.groupby("shard")["n_cells"].sum().tolist()
    assert sorted(set(bags["shard"])) == list(range(len(layout.shard_rows)))
    for _, of_shard in bags.groupby("shard"):
        assert of_shard["row_group"].is_monotonic_increasing
        assert sorted(set(of_shard["row_group"])) == list(range(of_shard["row_group"].max() + 1))
        assert of_shard["n_cells"].sum() <= max(shard_rows, of_shard["n_cells"].iloc[0])
        for _, rows in of_shard.groupby("row_group"):
            np.testing.assert_array_equal(rows["first_row"], rows["n_cells"].cumsum() - rows["n_cells"])
            assert rows["n_cells"].sum() <= max(row_group_rows, rows["n_cells"].iloc[0])
            after = of_shard[of_shard["row_group"] == rows["row_group"].iloc[0] + 1]
            if len(after):  # it is full: the next bag has no place in it
                assert rows["n_cells"].sum() + after["n_cells"].iloc[0] > row_group_rows

    again = plan_layout(labels, spec, bag_size=bag_size, key=(0,))
    np.testing.assert_array_equal(layout.position, again.position)
    assert bags.equals(again.bags)


def test_seed_and_dataset_change_the_shuffle():
    labels = labels_of(np.zeros(200, int), np.arange(200) % 4)
    one = plan_layout(labels, LayoutSpec(), bag_size=8, key=(0,)).position
    assert (one != plan_layout(labels, LayoutSpec(seed=1), bag_size=8, key=(0,)).position).mean() > 0.9
    assert (one != plan_layout(labels, LayoutSpec(), bag_size=8, key=(1,)).position).mean() > 0.9


def test_chunks_and_shards_do_not_change_the_order():
    labels = labels_of(np.zeros(200, int), np.arange(200) % 4)
    one = plan_layout(labels, LayoutSpec(), bag_size=8, key=(0,))
    other = plan_layout(labels, LayoutSpec(chunk_rows=3, shard_rows=50), bag_size=8, key=(0,))
    np.testing.assert_array_equal(one.position, other.position)
    assert len(one.shard_rows) == 1
    assert len(other.shard_rows) >= 4


def test_cells_and_bags_are_shuffled():
    labels = labels_of(np.zeros(4000, int), np.repeat(np.arange(4), 1000))
    layout = plan_layout(labels, LayoutSpec(), bag_size=50, key=(0,))
    place = np.argsort(layout.position)
    # A stored order that is random has no memory of the source's, neither of cells nor of groups.
    assert abs(np.corrcoef(place, np.arange(4000))[0, 1]) < 0.3
    inside = place[labels.perturbation[place] == 2]
    assert abs(np.corrcoef(inside, np.arange(1000))[0, 1]) < 0.1
    assert (layout.bags["perturbation"].diff() != 0).mean() > 0.5


def test_profiles_have_bags_of_one():
    labels = labels_of(np.zeros(20, int), np.arange(20) % 4)
    bags = plan_layout(labels, LayoutSpec(), bag_size=1, key=(0,)).bags
    assert (bags["n_cells"] == 1).all()
    assert len(bags) == 20
