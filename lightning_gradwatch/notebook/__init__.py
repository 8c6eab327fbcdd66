"""What a notebook shows of a run, from memory: the page, pictures, and the numbers as arrays."""
