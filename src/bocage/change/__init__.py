"""What changed between two years of embeddings."""
