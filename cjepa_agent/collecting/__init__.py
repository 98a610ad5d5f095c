"""Data sets made by running environments: what all collections share, and one module per environment."""
