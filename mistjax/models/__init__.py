"""pi0, pi0.5 and pi0-FAST as Flax modules; tokenizers, normalisation, checkpoints."""
