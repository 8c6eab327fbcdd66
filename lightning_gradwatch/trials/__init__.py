"""Remedies, tried on a throw-away copy of the model before one is prescribed."""
