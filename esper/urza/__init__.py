"""The central library: blueprints, kernels, reports, lineage, aliases and the audit ledger.

`port.py` is what other components hold; `library.py` decides; `store.py` and `blobs.py`
keep; `service.py` serves. docs/library.md tells the whole.
"""
