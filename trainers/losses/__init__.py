"""Policy losses, as pure functions of flat (packed) tensors.

A loss gives one value per policy token and metrics as exact sums; reduction happens once, outside, by global
counts, so a gradient does not depend on how a batch was cut into micro-batches and ranks (`bnpo`, whose
definition is local, is the one exception).

    inputs       what a loss is given: `LossInputs`, and sums and means per row
    policy       `policy_loss` and `reduce`; one table says which core and which reduction a loss type has
    cores        the cores: clipped ratio, CISPO, SAPO, VESPO, GMPO, DPPO
    offpolicy    sampler correction, off-policy row mask, entropy threshold, truncated rows
    preference   losses on pairs, on labelled completions and on scores
    reduction    from per-token values to the scalar that `backward` is called on
    metrics      sums that add up exactly over micro-batches and ranks

Which loss and its constants is `quintain.config.loss`.
"""
