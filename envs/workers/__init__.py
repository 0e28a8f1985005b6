"""The processes in which a served environment runs, so that one that hangs or dies costs its own episode."""
