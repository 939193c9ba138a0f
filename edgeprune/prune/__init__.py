"""The pruning engine: couplings -> scores -> budget -> plan -> surgery. Knows nothing of objectives or methods."""
