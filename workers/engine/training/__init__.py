"""Training: what a pruned model is trained with."""
