"""The attention core straight from its equations: dense, one cell and one head at a time, in torch.

Slow on purpose. Whatever dtype the parameters have is used; gradients come from autograd.
"""

import math
from dataclasses import dataclass

import torch


@dataclass
class Dense:
    """A cell as the equations see it: genes that are tokens, and their expression."""

    genes: list[int]
    x: torch.Tensor  # (n,)


def dense_cells(cells, tokens):
    """Every cell of a packed batch; under ``tokens="all"`` with the zeros of its panel."""
    result = []
    for i in range(cells.n_cells):
        here = (cells.cell == i).nonzero()[:, 0]
        value = {int(cells.gene_ids[t]): cells.values[t] for t in here}
        genes = cells.panels[int(cells.panel[i])].tolist() if tokens == "all" else sorted(value)
        zero = torch.zeros((), dtype=cells.values.dtype)
        result.append(
            Dense(genes, torch.stack([value.get(g, zero) for g in genes]) if genes else zero[None][:0])
        )
    return result


def functions(config, x):
    """φ_b(x) of one expression value."""
    if config.value_mode == "scale":
        return [x]
    if config.value_mode == "film":
        return [torch.ones_like(x), x]
    width = config.bins_max / (config.n_bins - 1)
    inside = x.clamp(0.0, config.bins_max)
    return [torch.relu(1 - (inside - b * width).abs() / width) for b in range(config.n_bins)]


def layer_norm(norm, x):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias


def affine(linear, x):
    return x @ linear.weight.T + (0 if linear.bias is None else linear.bias)


def attend(q, k, v, heads):
    """softmax(QKᵀ/√d_head) V, head by head."""
    width = q.shape[-1] // heads
    out = []
    for h in range(heads):
        at = slice(h * width, (h + 1) * width)
        weight = torch.softmax(q[:, at] @ k[:, at].T / math.sqrt(width), dim=1)
        out.append(weight @ v[:, at])
    return torch.cat(out, dim=1)


def encode(encoder, x, heads):
    """The encoder's layers on the tokens (n, d) of one cell."""
    d = x.shape[1]
    for layer in encoder.layers:
        y = layer_norm(layer.norm, x)
        if hasattr(layer, "points"):
            asked = affine(layer.points_query, layer_norm(layer.points_norm, layer.points))
            kv = affine(layer.tokens_kv, y)
            seen = attend(asked, kv[:, :d], kv[:, d:], heads)
            summary = layer.points + affine(layer.points_out, seen)  # (m, d)
            kv = affine(layer.summary_kv, layer_norm(layer.summary_norm, summary))
            seen = attend(affine(layer.tokens_query, y), kv[:, :d], kv[:, d:], heads)
        else:
            qkv = affine(layer.qkv, y)
            seen = attend(qkv[:, :d], qkv[:, d : 2 * d], qkv[:, 2 * d :], heads)
        x = x + affine(layer.out, seen)
        norm, wide, _, narrow = layer.network
        hidden = affine(wide, layer_norm(norm, x))
        x = x + affine(narrow, 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))))
    return x


def linear(layer, mask, cells):
    """``a_p = Σ_g m_pg Σ_b w_pgb φ_b(x_g) + b_p``; activity (B, P), contributions (B, P, G)."""
    config, (P, G) = layer.config, mask.shape
    weight = layer.weight if config.leak else layer.weight.view(-1, layer.expression.n_basis)
    shares = []
    for cell in dense_cells(cells, config.tokens):
        share = torch.zeros(P, G, dtype=weight.dtype)
        for g, x in zip(cell.genes, cell.x, strict=True):
            for p in range(P):
                if config.leak:
                    value = (1.0 if mask[p, g] else config.leak) * layer.weight[g, p] * x
                elif mask[p, g]:
                    e = int(((layer.edges.pathway == p) & (layer.edges.gene == g)).nonzero())
                    value = sum(w * f for w, f in zip(weight[e], functions(config, x), strict=True))
                else:
                    continue
                share = share.index_put((torch.tensor(p), torch.tensor(g)), value)
        shares.append(share)
    shares = torch.stack(shares)
    return shares.sum(2) + layer.bias, shares


def agreement(layer, mask, cells):
    """``a_p = √m_p Σ_g α_pg x_g + b_p`` over the m_p measured members; activity, contributions (B, P, G)."""
    P, G = mask.shape
    logit = {
        (int(p), int(g)): x
        for p, g, x in zip(layer.edges.pathway, layer.edges.gene, layer.edges.logit, strict=True)
    }
    shares = []
    for cell, panel in zip(dense_cells(cells, "expressed"), cells.panel.tolist(), strict=True):
        share = torch.zeros(P, G, dtype=layer.bias.dtype)
        for p in range(P):
            members = [g for g in cells.panels[panel].tolist() if mask[p, g]]
            total = sum(math.exp(logit[p, g]) for g in members)
            for g, x in zip(cell.genes, cell.x, strict=True):
                if mask[p, g]:
                    value = math.sqrt(len(members)) * math.exp(logit[p, g]) / total * x
                    share = share.index_put((torch.tensor(p), torch.tensor(g)), value)
        shares.append(share)
    shares = torch.stack(shares)
    return shares.sum(2) + layer.bias, shares


def attention(layer, mask, cells):
    """``softmax(gated QKᵀ/√d_head) V`` read out; activity (B, P), contributions and weights (B, P, G)."""
    config, (P, G), h = layer.config, mask.shape, layer.config.n_heads
    width = config.d_embed // h
    M = torch.from_numpy(mask)
    E = layer.gene
    if config.gene_vectors and config.gene_vectors_use == "frozen":
        E = torch.where((layer.gene_given != 0).any(1, keepdim=True), layer.gene_given, E)
    query = layer.query
    if config.pathway_init == "members":
        query = query + M.to(E) @ E / M.sum(1, keepdim=True).clamp(min=1)
    elif config.pathway_init == "text":
        query = query + affine(layer.w_text, layer.text)
    Q = affine(layer.w_query, query)

    allowed, W = M, None
    if config.masking == "none":
        allowed = torch.ones_like(M)
    elif config.masking not in ("hard", "members"):
        ends = layer.edges.pathway, layer.edges.gene
        allowed = torch.zeros_like(M).index_put(ends, torch.tensor(True))
        W = torch.zeros(P, G, dtype=E.dtype).index_put(ends, layer.mask)

    shares, weights = [], []
    for cell, panel in zip(dense_cells(cells, config.tokens), cells.panel.tolist(), strict=True):
        share, attended = torch.zeros(P, G, dtype=E.dtype), torch.zeros(P, G, dtype=E.dtype)
        if cell.genes:
            genes = torch.tensor(cell.genes)
            identity, tokens = E[genes], []
            for e, x in zip(identity, cell.x, strict=True):
                phi = functions(config, x)
                if config.value_mode == "scale":
                    tokens.append(e * x)
                else:
                    gamma = sum(f * row for f, row in zip(phi, layer.values.gamma, strict=True))
                    delta = sum(f * row for f, row in zip(phi, layer.values.delta, strict=True))
                    tokens.append(gamma * e + delta)
            tokens = torch.stack(tokens)  # (n, d)
            of_key = tokens
            if layer.encoder is not None:
                of_key = tokens = encode(layer.encoder, tokens, h)
            elif config.value_mode != "scale":
                of_key = identity
            K, V = affine(layer.w_key, of_key), affine(layer.w_value, tokens)
            seen = allowed[:, genes]  # (P, n)
            live = seen.any(1)
            for head in range(h):
                at = slice(head * width, (head + 1) * width)
                if config.masking == "members":
                    A, value = members(layer, M, Q[:, at], at, cells.panels[panel], cell, V[:, at])
                    share = share.index_put((torch.arange(P)[:, None], genes), A * value, True)
                    continue
                S = Q[:, at] @ K[:, at].T / math.sqrt(width)  # (P, n)
                if config.masking == "soft":
                    S = S * torch.sigmoid(W[:, genes])
                elif config.masking == "soft_log":
                    S = S + torch.log(torch.sigmoid(W[:, genes]))
                S = S.masked_fill(~seen, -torch.inf)
                A = torch.softmax(S[live], dim=1)
                rows = live.nonzero()[:, 0][:, None]
                share = share.index_put((rows, genes), A * (layer.readout[live][:, at] @ V[:, at].T), True)
                attended = attended.index_put((rows, genes), A / h, True)
        shares.append(share)
        weights.append(attended)
    shares, weights = torch.stack(shares), torch.stack(weights)
    return shares.sum(2) + layer.bias, shares, weights


def members(layer, mask, query, at, panel, cell, V):
    """One head of ``members``: weights over what the panel measures, and read-outs, (P, n) each."""
    config, (P, width) = layer.config, query.shape
    key = affine(layer.w_key, layer.embedding()[panel])[:, at]
    A = torch.zeros(P, mask.shape[1], dtype=key.dtype)
    for p in range(P):
        inside = [i for i, g in enumerate(panel.tolist()) if mask[p, g]]
        if inside:
            weight = torch.softmax(key[inside] @ query[p] / math.sqrt(width), dim=0)
            A = A.index_put((torch.tensor(p), panel[inside]), weight)
    limit = config.bins_max if config.value_mode == "bins" else math.inf
    own = cell.x.clamp(max=limit) / config.n_heads  # (n,)
    learned = layer.readout[:, at] @ V.T / math.sqrt(width)
    size = mask.sum(1, keepdim=True).to(key)
    return A[:, cell.genes], size.sqrt() * (own + learned)


def activity(layer, mask, cells):
    """Activities (B, P) of any strategy."""
    return WITHOUT_TOKENS.get(layer.config.masking, attention)(layer, mask, cells)[0]


WITHOUT_TOKENS = {"linear": linear, "agreement": agreement}
