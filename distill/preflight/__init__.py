"""What a recipe will cost and need, worked out without training."""
