"""What is needed to make packages of the bridge."""
