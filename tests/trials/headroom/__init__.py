"""How far the learning rate is from the edge."""
