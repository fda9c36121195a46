"""Maths: functions of tensors and numbers, independent of models."""
