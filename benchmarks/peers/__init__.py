"""Other ways to push to browsers, measured beside the bridges: see benchmarks/README.md."""
