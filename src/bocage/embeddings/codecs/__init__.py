"""Codecs: float32 embeddings to small codes and back, numpy only unless said otherwise."""
