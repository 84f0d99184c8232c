"""Drawn data with everything known about it: scenes of objects and walkers before cameras."""
