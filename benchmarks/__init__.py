"""How fast the bridge is, beside a naive one that does the same job on the same machine in the same run."""
