"""Training: layers, losses, text and state for tuning a pruned model."""
