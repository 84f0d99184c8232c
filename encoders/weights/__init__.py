"""Weight files: reading, matching with a network, filling it, wrapped networks."""
