"""What `quintain env new` writes: one environment of each kind, sound as it is."""
