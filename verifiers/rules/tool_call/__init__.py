"""The tool-call verifier: does the answer call the right functions with allowed arguments?"""
