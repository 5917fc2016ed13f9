"""What a training run pays for Esper, and what a model is under it."""
