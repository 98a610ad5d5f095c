"""Questions about CLEVRER scenes: their words, programs, answers and files.

``scene_pool`` draws and answers questions about a scene, ``balance`` picks from the pools of all scenes, and
``write_questions`` writes the picked ones in the official format. ``execute`` and ``judge`` answer any program.
"""

from envs.clevrer.questions.balance import balance
from envs.clevrer.questions.executor import ProgramError, execute, judge, trace
from envs.clevrer.questions.facts import Facts, Object
from envs.clevrer.questions.files import QuestionFile, read_questions, scene_entry, write_questions
from envs.clevrer.questions.generate import Candidate, Option, scene_pool
from envs.clevrer.questions.vocabulary import (
    ANSWER_VOCABULARY,
    QUESTION_VOCABULARY,
    encode_answer,
    encode_question,
    tokenize,
)

__all__ = [
    "ANSWER_VOCABULARY",
    "QUESTION_VOCABULARY",
    "Candidate",
    "Facts",
    "Object",
    "Option",
    "ProgramError",
    "QuestionFile",
    "balance",
    "encode_answer",
    "encode_question",
    "execute",
    "judge",
    "read_questions",
    "scene_entry",
    "scene_pool",
    "tokenize",
    "trace",
    "write_questions",
]
