"""Gymnasium environments.

Importing this package makes ``gym.make("PushT-v0")`` and ``gym.make("CLEVRER-v0")`` work and loads nothing else:
Gymnasium, NumPy and pymunk are imported only when they are used.
"""

from envs.registration import register_envs, register_when_imported

__all__ = ["register_envs"]

register_when_imported()
