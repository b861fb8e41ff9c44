"""Evaluation: methods compared on the same series, as tables and pictures."""
