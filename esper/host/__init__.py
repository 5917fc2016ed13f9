"""What is done to somebody's model: find sites, prove them, swap forwards, graft, fold, and optimiser surgery."""
