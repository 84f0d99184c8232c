"""Measures that every task shares: distances, rankings, intervals."""
