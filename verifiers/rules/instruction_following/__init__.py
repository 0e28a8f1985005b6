"""The instruction-following verifier: does the answer obey IFEval's checkable instructions?"""

from quintain.verifiers.rules.instruction_following.verifier import (
    InstructionFollowingOptions,
    InstructionFollowingVerifier,
    make_instruction_following_verifier,
)

__all__ = [
    "InstructionFollowingOptions",
    "InstructionFollowingVerifier",
    "make_instruction_following_verifier",
]
