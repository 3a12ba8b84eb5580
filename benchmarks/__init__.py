"""How fast the bridge is, compared with a naive one that does the same job on the same machine in the same run."""
