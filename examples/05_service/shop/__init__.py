"""A shop's own code: it knows Celery and nothing of KubeExecutor."""
