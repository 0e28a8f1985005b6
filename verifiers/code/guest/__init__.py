"""What runs inside the sandbox beside tested code: the worker, the grader, the pytest runner.

These modules need nothing but a Python 3.10, its standard library and (the runner) pytest. They are sent into the
sandbox as byte code that its own interpreter has compiled (`quintain.verifiers.code.bundle`), so quintain need not be
readable in there. What always holds: no module here trusts a byte that came from tested code beyond what
`values.decode` can build from it.
"""
