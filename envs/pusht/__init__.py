"""Push-T: an agent disc pushes a block over a plane."""

from envs.pusht.env import PushTEnv
from envs.pusht.physics import PushTPhysics
from envs.pusht.render import SEGMENTS, PushTRenderer, Style
from envs.pusht.success import SUCCESS_RULES, SuccessCounter, SuccessRule, success_rule

__all__ = [
    "SEGMENTS",
    "SUCCESS_RULES",
    "PushTEnv",
    "PushTPhysics",
    "PushTRenderer",
    "Style",
    "SuccessCounter",
    "SuccessRule",
    "success_rule",
]
