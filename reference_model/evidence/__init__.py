"""The paper's experiment on scenes of real recordings, which come from Debian packages."""
