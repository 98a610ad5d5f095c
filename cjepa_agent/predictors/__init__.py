"""Latents to the latents that follow."""
