"""Training networks for better maps: CPN, SEAM, patches, refinement."""
