"""Modelled, and it says so: compute that sleeps instead of computing, links that make messages wait."""
