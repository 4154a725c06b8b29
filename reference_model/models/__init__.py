"""Audio and text encoders, the dual encoder made of them, and the features of frozen encoders."""
