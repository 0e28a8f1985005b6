"""The instruction-following verifier: does the answer obey IFEval's checkable instructions?"""
