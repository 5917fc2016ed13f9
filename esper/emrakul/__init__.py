"""Emrakul, the architectural sculptor: probes fossils by held-out ablation and removes what no longer pays."""
