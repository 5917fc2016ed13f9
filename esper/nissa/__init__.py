"""Observability: what happened in every run, written down once and shown in many ways."""
