"""Reporting: a report in words, figures and pages."""
