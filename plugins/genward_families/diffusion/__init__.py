"""Diffusion families."""
