"""genward trains, seals, serves and governs generative models."""
