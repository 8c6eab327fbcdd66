"""Engines under which gradients are not whole: what a rank holds, and how the parts become the numbers of the whole."""
