"""The command ``kube-executor``."""
