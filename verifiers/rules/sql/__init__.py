"""The SQL verifier: does the answer's query find the same rows as the reference's?"""
