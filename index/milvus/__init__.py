"""Galleries whose rows and vectors live in Milvus."""
