"""What runs on the other side of the namespaces sandbox: zygote, keeper, init and guest.

A zygote is started once, sees only what programs may see, and makes a *keeper* for each slot. A keeper makes
fresh namespaces for each session, with an *init* that sleeps in them as process 1, and forks a *guest* for each
command, which gives up every power it has and becomes the program.

    service ── zygote ── keeper (one per slot) ─┬─ init (one per session)
                                                └─ guest (one per command)

The zygote may also have loaded programs of ours (`NamespaceSandbox(prepared=...)`), which a guest can become.
None of them but the guest ever runs foreign code, and none of them ever holds an expected output, a secret or
anything that a program brings: a keeper hands that on unread.
This folder is imported by an interpreter that need not have quintain: standard library only, Python 3.10.
"""
