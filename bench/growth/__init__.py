"""What growth brings."""
