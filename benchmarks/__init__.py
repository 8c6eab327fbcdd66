"""Benchmarks that anyone can run; each prints the figures that the README quotes."""
