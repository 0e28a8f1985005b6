"""The judge: a language model behind an OpenAI-compatible endpoint says whether an answer is right."""

from quintain.verifiers.models.judge.verifier import JudgeOptions, JudgeVerifier, make_judge_verifier

__all__ = ["JudgeOptions", "JudgeVerifier", "make_judge_verifier"]
