"""Preference tuning by ORPO (Hong et al. 2024, https://huggingface.co/papers/2403.07691)."""
