"""Plans of models: weights and their layouts, and rules resolved on them."""
