"""Target rules, losses and contrastive terms, and the presets that make methods of them.

Each method has one network and one stage, over the same loop. Each formula is its paper's; where the
authors' public code says more or says otherwise, that is named. Schedules that papers give in epochs are
shares of the run here, so that a method can run in any recipe's budget. The published numbers are in
presets.py.
"""
