"""What the methods that tune a pruned model share."""
