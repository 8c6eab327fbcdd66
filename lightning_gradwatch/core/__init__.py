"""Measuring and judging gradients with torch alone: usable in any training loop, without Lightning or TensorBoard."""
