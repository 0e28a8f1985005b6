"""Pure decisions: how many, which next, in what order, and what makes a group. No clocks, no sockets."""
