"""How far the learning rate is from the edge: by which multiple of the present update the loss would stop falling."""
