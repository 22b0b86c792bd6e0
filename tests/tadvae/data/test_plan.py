"""The order of an epoch over ranks, and what the assembler makes of it."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tadvae.cells.ragged import Cells
from tadvae.data.batches import BatchAssembler
from tadvae.data.plan import (
    StepCost,
    StreamConfig,
    _in_step,
    bags_left,
    divided_bags,
    epoch_windows,
    rank_bags,
    steps_per_epoch,
)

SEEDED = settings(max_examples=60, deadline=None, derandomize=True)
CONTROL = 0
COST = StepCost(CONTROL)


def bag_table(row_groups, seed=0):
    """A store's bag table: ``row_groups`` holds the numbers of bags of each shard's row groups."""
    rng = np.random.default_rng(seed)
    rows = []
    for shard, groups in enumerate(row_groups):
        for group, n in enumerate(groups):
            rows += [(shard % 2, int(rng.integers(2)), int(rng.integers(4)), shard, group) for _ in range(n)]
    table = pd.DataFrame(rows, columns=["dataset", "context", "perturbation", "shard", "row_group"]).astype(
        int
    )
    table["n_cells"] = rng.integers(1, 5, len(table))
    table["n_tokens"] = table["n_cells"] * rng.integers(1, 2000, len(table))
    return table


@st.composite
def tables(draw):
    """Bag tables of which training sees only some bags."""
    shard = st.lists(st.integers(1, 5), min_size=1, max_size=5)
    table = bag_table(draw(st.lists(shard, min_size=1, max_size=4)), draw(st.integers(0, 9)))
    keep = draw(st.lists(st.booleans(), min_size=len(table), max_size=len(table)))
    return table[keep]


worlds, seeds = st.integers(1, 6), st.integers(0, 50)


def plan(table, config, seed, epoch, rank, world, skip=0):
    return epoch_windows(
        table, config, seed=seed, epoch=epoch, rank=rank, world_size=world, cost=COST, skip=skip
    )


def order_of(windows):
    return [int(bag) for window in windows for bag in window.order]


@SEEDED
@given(tables(), worlds, seeds, st.integers(0, 3))
def test_every_bag_once_over_all_ranks(table, world, seed, epoch):
    config = StreamConfig(shuffle_window=2)
    orders = [order_of(plan(table, config, seed, epoch, rank, world)) for rank in range(world)]
    assert len({len(order) for order in orders}) == 1  # ranks wait for each other
    assert all(len(set(order)) == len(order) for order in orders)
    seen = Counter(bag for order in orders for bag in order)
    assert set(seen) == set(table.index)
    repeated = {rank_bags(table, seed, epoch, rank, world)[1] for rank in range(world)}
    assert repeated == {sum(seen.values()) - len(table)}
    assert repeated.pop() < world


def test_ranks_that_share_a_row_group_swap_its_bags():
    table = bag_table([[20]])
    firsts = [frozenset(order_of(plan(table, StreamConfig(), 0, epoch, 0, 2))) for epoch in range(4)]
    assert len(set(firsts)) == 4


@SEEDED
@given(tables(), worlds, seeds, st.integers(1, 4))
def test_windows_read_whole_bags_from_where_they_are(table, world, seed, size):
    reads_of_group = Counter()
    for rank in range(world):
        for window in plan(table, StreamConfig(shuffle_window=size), seed, 0, rank, world):
            assert 0 < len(window.reads) <= size
            read = [int(bag) for _, _, bags in window.reads for bag in bags]
            assert sorted(read) == sorted(window.order.tolist())
            for shard, group, bags in window.reads:
                assert len(bags) > 0
                assert (table.loc[bags, "shard"] == shard).all()
                assert (table.loc[bags, "row_group"] == group).all()
                assert bags.tolist() == sorted(bags)  # as stored
                reads_of_group[shard, group] += 1
    if len(table) % world == 0:
        assert sum(reads_of_group.values()) - len(reads_of_group) <= world - 1


@SEEDED
@given(tables(), st.integers(1, 4), seeds, st.integers(0, 2), st.integers(1, 3))
def test_skip_leaves_exactly_the_tail(table, world, seed, epoch, size):
    config = StreamConfig(shuffle_window=size)
    for rank in range(world):
        whole = order_of(plan(table, config, seed, epoch, rank, world))
        for skip in range(len(whole) + 2):
            rest = plan(table, config, seed, epoch, rank, world, skip)
            assert order_of(rest) == whole[skip:]
            for window in rest:
                read = [int(bag) for _, _, bags in window.reads for bag in bags]
                assert sorted(read) == sorted(window.order.tolist())  # nothing is read for nothing
                assert len(window.order) > 0
                assert all(len(bags) for _, _, bags in window.reads)


@SEEDED
@given(tables(), worlds, seeds)
def test_the_order_is_a_pure_function(table, world, seed):
    config = StreamConfig(shuffle_window=2)
    first = [order_of(plan(table, config, seed, 1, rank, world)) for rank in range(world)]
    again = [order_of(plan(table.copy(), config, seed, 1, rank, world)) for rank in reversed(range(world))]
    assert first == again[::-1]


BIG = bag_table([[4, 5, 3], [5, 5], [2, 4, 4]])


def test_epochs_seeds_and_ranks_differ():
    config = StreamConfig(shuffle_window=2)
    orders = {
        (seed, epoch, rank): tuple(order_of(plan(BIG, config, seed, epoch, rank, 2)))
        for seed in (0, 1)
        for epoch in (0, 1, 2)
        for rank in (0, 1)
    }
    assert len(set(orders.values())) == len(orders)
    parts = {key: frozenset(order) for key, order in orders.items()}
    assert len({parts[0, epoch, 0] for epoch in (0, 1, 2)}) == 3  # ranks do not keep their bags


def test_bags_are_shuffled_within_the_window_only():
    (window,) = plan(BIG, StreamConfig(shuffle_window=100), 0, 0, 0, 1)
    assert window.order.tolist() != [int(bag) for _, _, bags in window.reads for bag in bags]
    groups = [(shard, group) for shard, group, _ in window.reads]
    assert groups != sorted(groups)
    for window in plan(BIG, StreamConfig(shuffle_window=1), 0, 0, 0, 1):
        assert len(set(zip(BIG["shard"][window.order], BIG["row_group"][window.order], strict=True))) == 1


def encoded_and_observed(table, batch):
    """Tokens of a batch by loops, as the assembler encodes them, matched controls as long as their bag."""
    places, observed, encoded = {}, 0, 0
    for bag in batch:
        row = table.loc[bag]
        kind = "control" if row["perturbation"] == CONTROL else "perturbed"
        place = places.setdefault((row["dataset"], row["context"]), {"control": [], "perturbed": []})
        place[kind].append((row["n_cells"], row["n_tokens"]))
    for place in places.values():
        observed += sum(tokens for _, tokens in place["perturbed"])
        encoded += sum(tokens for _, tokens in place["control"])
        most = max((cells for cells, _ in place["control"]), default=0)
        if most < max((cells for cells, _ in place["perturbed"]), default=0):
            encoded += max(tokens for _, tokens in place["perturbed"])
    return encoded, observed


@SEEDED
@given(st.integers(0, 30), st.integers(0, 9), st.integers(1, 4), st.floats(0, 30), seeds)
def test_in_step_moves_whole_batches_only(n_bags, done, per_batch, each, seed):
    rng = np.random.default_rng(seed)
    table, step_key = bag_table([[n_bags]], seed), rng.random(50)
    order = rng.permutation(n_bags)
    found = _in_step(order, table, StepCost(CONTROL, each), done, per_batch, step_key)
    first = -done % per_batch
    n_batches = max(n_bags - first, 0) // per_batch
    end = first + n_batches * per_batch
    np.testing.assert_array_equal(found[:first], order[:first])
    np.testing.assert_array_equal(found[end:], order[end:])
    batches = [part[first:end].reshape(n_batches, per_batch).tolist() for part in (found, order)]
    assert sorted(batches[0]) == sorted(batches[1])
    pairs = [encoded_and_observed(table, batch) for batch in batches[0]]
    costs = [each * encoded + observed for encoded, observed in pairs]
    step = (done + first) // per_batch
    by_key = np.argsort(step_key[step : step + n_batches])
    assert np.all(np.diff(np.array(costs)[by_key]) >= -1e-6)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_have_their_large_batches_at_the_same_steps(world):
    rng = np.random.default_rng(0)
    table = bag_table([[40] * 20] * 2)
    table["n_tokens"] = (1e4 * rng.lognormal(0.0, 0.7, len(table))).astype(int)
    config = StreamConfig(bags_per_batch=4)
    orders = [order_of(plan(table, config, 0, 0, rank, world)) for rank in range(world)]
    batches = np.array(orders).reshape(world, -1, 4)
    costs = [[sum(encoded_and_observed(table, batch)) for batch in of_rank] for of_rank in batches]
    tokens = np.array(costs)  # (world, steps)
    apart = np.stack([rng.permutation(row) for row in tokens])

    def waiting(sizes):
        return sizes.max(axis=0).mean() / sizes.mean() - 1.0

    assert waiting(tokens) < waiting(apart) / 3
    # and large batches are anywhere in the epoch
    assert abs(np.corrcoef(tokens[0], np.arange(tokens.shape[1]))[0, 1]) < 0.25


def test_no_bags_and_more_ranks_than_bags():
    assert plan(BIG.iloc[:0], StreamConfig(), 0, 0, 1, 3) == []
    assert rank_bags(BIG.iloc[:0], 0, 0, 0, 3) == ([], 0)
    assert steps_per_epoch(0, StreamConfig(), 3) == 0
    orders = [order_of(plan(BIG.iloc[:2], StreamConfig(), 0, 0, rank, 5)) for rank in range(5)]
    assert [len(order) for order in orders] == [1] * 5
    assert rank_bags(BIG.iloc[:2], 0, 0, 0, 5)[1] == 3


# -- assembling -------------------------------------------------------------------------------------


def cells_of_bag(bag, n):
    """n cells of one gene each, which is the bag's number."""
    offsets = np.arange(n + 1)
    return Cells(np.full(n, bag), np.arange(1, n + 1, dtype=np.float32), offsets, np.full(n, 100.0))


def pool(dataset, context, n):
    """Control cells that can be told apart: gene = pool, value = row."""
    return Cells(
        np.full(n, 1000 + 10 * dataset + context),
        np.arange(n, dtype=np.float32),
        np.arange(n + 1),
        np.ones(n),
    )


POOLS = {(dataset, context): pool(dataset, context, 3) for dataset in (0, 1) for context in (0, 1)}


def reads_of(table, windows, missing=()):
    for window in windows:
        for _, _, bags in window.reads:
            bags = [bag for bag in np.sort(bags).tolist() if bag not in missing]
            sizes = table["n_cells"].loc[bags]
            yield np.repeat(bags, sizes), Cells.concat([cells_of_bag(b, n) for b, n in sizes.items()])


def assemble(table, windows, per_batch, *, epoch=0, seed=0, missing=(), controls=POOLS):
    assembler = BatchAssembler(table, controls, CONTROL, per_batch, seed)
    return list(assembler.batches(windows, reads_of(table, windows, missing), epoch))


def content(bag):
    """Everything of a bag, comparable."""
    parts = [bag.cells] if bag.controls is None else [bag.cells, bag.controls]
    return (bag.bag, bag.dataset, bag.context, bag.perturbation), [
        (part.gene_ids.tolist(), part.values.tolist(), part.offsets.tolist()) for part in parts
    ]


def contents(batches):
    return [[content(bag) for bag in batch.bags] for batch in batches]


@SEEDED
@given(tables(), worlds, seeds, st.integers(1, 5))
def test_batches_hold_the_planned_bags(table, world, seed, per_batch):
    store = bag_table([[100]])  # every id that a training table can hold
    store.loc[table.index, table.columns] = table
    config = StreamConfig(shuffle_window=2, bags_per_batch=per_batch)
    for rank in range(world):
        windows = plan(table, config, seed, 0, rank, world)
        batches = assemble(store, windows, per_batch)
        assert len(batches) == steps_per_epoch(len(table), config, world)
        assert all(len(batch.bags) == per_batch for batch in batches[:-1])
        order = order_of(windows)
        for i, batch in enumerate(batches):
            found = [(bag.dataset, bag.context, bag.bag) for bag in batch.bags]
            assert found == sorted(found)
            assert {bag.bag for bag in batch.bags} == set(order[i * per_batch : (i + 1) * per_batch])
            for bag in batch.bags:
                row = store.loc[bag.bag]
                assert (bag.dataset, bag.context, bag.perturbation) == (
                    row["dataset"],
                    row["context"],
                    row["perturbation"],
                )
                assert content(bag)[1][0][0] == [bag.bag] * row["n_cells"]  # its own cells, all of them
                assert (bag.controls is None) == (bag.perturbation == CONTROL)


def test_controls_are_of_the_same_dataset_and_context():
    for batch in assemble(BIG, plan(BIG, StreamConfig(), 0, 0, 0, 1), 4):
        for place in {(bag.dataset, bag.context) for bag in batch.bags}:
            inside = [bag for bag in batch.bags if (bag.dataset, bag.context) == place]
            perturbed = [bag for bag in inside if bag.controls is not None]
            largest = max((len(bag.cells) for bag in perturbed), default=0)
            own = [bag.cells for bag in inside if bag.controls is None]
            for bag in perturbed:
                assert bag.controls is perturbed[0].controls  # encoded once
                assert len(bag.controls) >= largest
            if not perturbed:
                continue
            controls = perturbed[0].controls
            if any(len(cells) >= largest for cells in own):  # a bag of controls serves
                assert any(controls is cells for cells in own)
            else:
                assert set(controls.gene_ids) == {1000 + 10 * place[0] + place[1]}
                assert len(controls) == largest
                if largest <= 3:  # no control cell twice, while there are enough of them
                    assert len(set(controls.values)) == largest
            assert sum(cells is controls for cells in batch.encoded) == 1


def test_batches_draw_their_controls_apart():
    table = bag_table([[6] * 4]).assign(dataset=0, context=0, perturbation=1, n_cells=4)
    batches = assemble(table, plan(table, StreamConfig(), 0, 0, 0, 1), 3, controls={(0, 0): pool(0, 0, 1000)})
    drawn = {tuple(bag.controls.values) for batch in batches for bag in batch.bags}
    assert len(drawn) == len(batches) == 8


@SEEDED
@given(tables(), worlds, seeds, st.integers(1, 5))
def test_batches_are_filled_context_by_context(table, world, seed, per_batch):
    """In every window at most one batch per context is not of one context alone, and those at the seams."""
    config = StreamConfig(shuffle_window=3, bags_per_batch=per_batch)
    for rank in range(world):
        order, n_windows = [], 0
        for window in plan(table, config, seed, 0, rank, world):
            order += window.order.tolist()
            n_windows += 1
        place = list(zip(table.loc[order, "dataset"], table.loc[order, "context"], strict=True))
        mixed = [i for i in range(0, len(order), per_batch) if len(set(place[i : i + per_batch])) > 1]
        n_places = len(set(place))
        assert len(mixed) <= n_windows * (n_places + 1)


def test_one_context_a_batch_where_there_are_enough_bags():
    table = bag_table([[16] * 4]).assign(n_cells=4, perturbation=1, dataset=0)
    table["context"] = np.arange(len(table)) % 2
    config = StreamConfig(bags_per_batch=8)
    for batch in assemble(table, plan(table, config, 3, 0, 0, 1), 8):
        assert len({bag.context for bag in batch.bags}) == 1
        assert len(batch.encoded) == 1


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_controls_of_a_batch_depend_on_its_bags_alone(world):
    """The same bags in a batch of another rank have the same controls."""
    by_bags = {}
    for size in (1, world):
        for rank in range(size):
            for batch in assemble(BIG, plan(BIG, StreamConfig(shuffle_window=3), 0, 0, rank, size), 1):
                (bag,) = batch.bags
                assert by_bags.setdefault(bag.bag, content(bag)) == content(bag)
    assert set(by_bags) == set(BIG.index)


def test_controls_change_with_epoch_and_seed():
    windows = plan(BIG, StreamConfig(), 0, 0, 0, 1)
    first = contents(assemble(BIG, windows, 4))
    assert contents(assemble(BIG, windows, 4)) == first
    assert contents(assemble(BIG, windows, 4, epoch=1)) != first
    assert contents(assemble(BIG, windows, 4, seed=1)) != first


@SEEDED
@given(tables(), worlds, st.integers(2, 6), st.integers(0, 2))
def test_parts_of_bags_hold_every_cell_once(table, world, size, epoch):
    store = bag_table([[100]])
    store.loc[table.index, table.columns] = table.assign(n_cells=table["n_cells"] * 3)
    table = store.loc[table.index].assign(perturbation=CONTROL)
    divided = divided_bags(table, size, len(store))
    assert divided.index.is_unique
    seen, config = {}, StreamConfig(bags_per_batch=1)
    for rank in range(world):
        windows = plan(divided, config, 3, epoch, rank, world)
        stored = [bags % len(store) for window in windows for _, _, bags in window.reads]
        reads = (
            (np.repeat(bags, sizes), Cells.concat([cells_of_bag(b, n) for b, n in sizes.items()]))
            for bags, sizes in ((np.unique(b), store["n_cells"].loc[np.unique(b)]) for b in stored)
        )
        everything = BatchAssembler(store.assign(perturbation=CONTROL), POOLS, CONTROL, 1, 3, size)
        for batch in everything.batches(windows, reads, epoch):
            (bag,) = batch.bags
            assert 0 < len(bag.cells) <= size
            assert set(bag.cells.gene_ids) == {bag.bag % len(store)}
            seen[bag.bag] = bag.cells.values.tolist()  # the same on every rank that repeats it
    assert set(seen) == set(divided.index)
    for bag, row in table.iterrows():
        found = [value for part, values in seen.items() if part % len(store) == bag for value in values]
        assert sorted(found) == list(range(1, row["n_cells"] + 1))


def test_whole_bags_without_a_size():
    assert divided_bags(BIG, None, 50) is BIG


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("per_batch", [1, 3, 4])
def test_resuming_makes_the_same_batches(world, per_batch):
    config = StreamConfig(shuffle_window=2, bags_per_batch=per_batch)
    for rank in range(world):
        whole = contents(assemble(BIG, plan(BIG, config, 5, 2, rank, world), per_batch, epoch=2, seed=5))
        for step in range(len(whole) + 1):
            windows = plan(BIG, config, 5, 2, rank, world, skip=step * per_batch)
            assert contents(assemble(BIG, windows, per_batch, epoch=2, seed=5)) == whole[step:]


def test_bags_without_cells_are_left_out():
    windows = plan(BIG, StreamConfig(), 0, 0, 0, 1)
    missing = set(order_of(windows)[::3])
    batches = assemble(BIG, windows, 4, missing=missing)
    found = [bag.bag for batch in batches for bag in batch.bags]
    assert sorted(found) == sorted(set(BIG.index) - missing)
    assert all(len(batch.bags) == 4 for batch in batches[:-1])
    assert assemble(BIG, windows, 4, missing=set(BIG.index)) == []


@SEEDED
@given(
    tables(), st.lists(st.tuples(worlds, st.integers(0, 4)), min_size=1, max_size=4), seeds, st.integers(1, 3)
)
def test_an_epoch_stays_whole_while_workers_come_and_go(table, stretches, seed, per_batch):
    """Every stretch but the last ends early; all bags are seen, and twice only those of a rank's fill-up."""
    config = StreamConfig(shuffle_window=2, bags_per_batch=per_batch)
    earlier, seen = [], Counter()
    left = table
    for number, (world, steps) in enumerate(stretches):
        left = bags_left(table, config, seed=seed, epoch=1, cost=COST, earlier=earlier)
        assert set(left.index).isdisjoint(seen)
        assert set(left.index) | set(seen) == set(table.index)
        if left.empty:
            break
        in_all = steps_per_epoch(len(left), config, world)
        steps = in_all if number == len(stretches) - 1 else min(steps, in_all - 1)
        orders = [order_of(plan(left, config, seed, 1, rank, world)) for rank in range(world)]
        shown = Counter(bag for order in orders for bag in order[: steps * per_batch])
        seen += shown
        assert sum(shown.values()) - len(shown) < world
        earlier.append((world, steps * per_batch))
    assert set(seen) == set(table.index)
