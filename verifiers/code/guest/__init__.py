"""What runs inside the sandbox beside tested code: the worker, the grader, the pytest runner.

These modules need nothing but a Python 3.10, its standard library and (the runner) pytest. The namespaces sandbox has
them loaded and warm before any program runs; into others they are sent as byte code that the sandbox's own interpreter
has compiled (`quintain.verifiers.code.sandboxes`). Either way quintain need not be readable in there. What always
holds: no module here trusts a byte that came from tested code beyond what `values.decode` can build from it.
"""
