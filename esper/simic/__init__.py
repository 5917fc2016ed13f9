"""Policy training. So far: the replay store, what growth has taught so far."""
