"""The examples are scripts: test_examples.py starts them, nothing imports them."""

collect_ignore_glob = ["pairs.py", "plain_torch.py", "with_*.py"]
