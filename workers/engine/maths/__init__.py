"""Maths: functions of tensors and numbers, which know nothing of models."""
