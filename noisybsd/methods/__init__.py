"""Target rules, losses and contrastive terms, and the presets that make methods of them."""
