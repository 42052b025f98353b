"""The only writers of weights: plans attached to models, and hooks on training steps and fits."""
