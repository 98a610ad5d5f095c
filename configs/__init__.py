"""Hydra configuration groups; every group is backed by a frozen dataclass that holds the defaults and validates."""
