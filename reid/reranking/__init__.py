"""Re-ranking: k-reciprocal encoding, neighbours, query expansion."""
