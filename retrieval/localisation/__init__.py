"""Localisation from retrieval maps: references, maps, evaluation, results."""
