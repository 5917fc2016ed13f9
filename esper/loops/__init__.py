"""Other people's training loops: callbacks that grow a model while somebody else's trainer trains it."""
