"""Where the gradient is lost on its way back, operation by operation, measured on the loss's autograd graph."""
