"""Settings of a network and batches that train in seconds on the simulated screens."""

SMALL = [
    "stream.bags_per_batch=3",
    "stream.shuffle_window=3",
    "model.pathway={d_embed: 16, n_heads: 2}",
    "model.causal={n_factors: 4, hidden: 16}",
    "model.decoder={d_gene: 16, hidden: 16}",
]
