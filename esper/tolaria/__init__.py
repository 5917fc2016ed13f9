"""Tolaria, the training orchestrator: tasks, the reference loop, the session, snapshots, journal, governor."""
