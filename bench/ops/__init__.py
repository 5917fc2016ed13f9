"""One bench per op, of the op's name."""
