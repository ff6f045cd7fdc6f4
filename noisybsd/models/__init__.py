"""Networks, the bank of their embeddings, and how they are optimised."""
