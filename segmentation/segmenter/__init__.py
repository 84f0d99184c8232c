"""Segmenters trained on masks: network, losses, inference."""
