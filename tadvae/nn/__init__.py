"""The network: pathway layer, encoder, latent factors, causal layer, decoder and losses."""
