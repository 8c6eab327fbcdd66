"""Everything that TensorBoard reads. Nothing in this package imports torch or Lightning at its top."""
