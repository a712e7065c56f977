"""Marginal-based families: no record is ever seen, only counts."""
