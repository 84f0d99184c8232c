"""Drawn data with everything known about it: scenes of objects, crowds of cells, and walkers before cameras."""
