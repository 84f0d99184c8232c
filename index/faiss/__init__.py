"""Search with FAISS: candidates, error bounds, factories, tuning, GPU."""
