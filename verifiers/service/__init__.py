"""The verifier service: verdicts over HTTP, on its own or as a page of an environment's server.

`serve.serve_verifiers` runs it, `quintain.verifiers.client` talks to it. One job (`jobs`) judges one request's
items, for as many clients at once as the limits allow (`limits`, `quotas`), fairly (`lines`), and remembers
verdicts (`cache`); `policy` says what a client may ask for; `fusion` speaks SandboxFusion's wire.
"""
