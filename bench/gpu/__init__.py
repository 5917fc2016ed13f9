"""Everything that needs a CUDA device, in one command: `python -m bench.gpu`, or `make gpu`."""
