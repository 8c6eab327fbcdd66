"""What only a GPU can tell: whether GradWatch is right there, waits for nothing, and what it costs."""
