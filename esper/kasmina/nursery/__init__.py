"""The nursery: candidates tried in isolation, twins continued, snapshots measured, away from the training process."""
