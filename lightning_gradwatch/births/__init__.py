"""Where NaN and infinite values are born: a step is replayed on a copy of the model, operation by operation."""
