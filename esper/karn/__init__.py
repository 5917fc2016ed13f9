"""The generative architect: designs as blueprints, never code."""
