"""The `esper` command: thin; what it does is in esper.runtime."""
