"""One layer in one direction, and a stack of them, as functions without state."""
