"""Statistics shared by growth and removal: paired differences, intervals, verdicts."""
