"""What monitoring adds to a decode step: `python -m benchmarks.decode`."""
