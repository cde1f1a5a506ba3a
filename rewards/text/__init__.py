"""Rewards of texts: exact answers, form, length, running code, and models that judge."""
