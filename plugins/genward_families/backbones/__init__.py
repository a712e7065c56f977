"""Networks that families share, one module a modality."""
