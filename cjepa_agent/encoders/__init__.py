"""Frames to slots or tokens, and back."""
