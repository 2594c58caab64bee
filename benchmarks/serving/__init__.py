"""What monitoring costs a vLLM server: `python -m benchmarks.serving`."""
