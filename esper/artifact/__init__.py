"""The artifact format: a compiled blueprint as files, their digests, and signed statements about them."""
