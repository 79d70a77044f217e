"""The parts of bench/run: one scenario a file, and what they share."""
