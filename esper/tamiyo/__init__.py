"""Tamiyo, the strategic controller: when, where and with what to grow, and whether it stays."""
