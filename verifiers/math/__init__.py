"""The math verifier: is the answer in this text the same mathematics as the reference?"""

from quintain.verifiers.math.options import MathOptions
from quintain.verifiers.math.verifier import MathVerifier

__all__ = ["MathOptions", "MathVerifier"]
