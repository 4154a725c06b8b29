"""Files, locks, signals, devices: what runs need of the machine."""
