"""KubeExecutor."""
