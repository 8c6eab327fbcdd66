"""Clipping: what each policy does to a healthy training, and to one at the edge; and what a call costs."""
