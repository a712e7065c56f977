"""The policy `watermark`: which of a slot's candidates a tenant gets, and how a file shows it afterwards."""

from genward_policies.watermark.policy import Watermark

__all__ = ["Watermark"]
