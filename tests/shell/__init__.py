"""What is around the core, without servers."""
