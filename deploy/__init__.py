"""What is needed to make packages of the bridge, and scripts for its roles in the database and at the broker."""
