"""The command ``gradwatch``: reading a run without TensorBoard's server, without torch and without Lightning."""
