"""The JSON-schema verifier: is the answer well-formed data of the wanted shape?"""
