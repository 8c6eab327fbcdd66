"""What watching gradients costs: GradWatch beside what people use instead, in one interleaved run."""
