"""The only road to Kubernetes: the API server's client, manifests, watching, diagnosis, the tunnel to the broker.

Nothing here knows of calls or pools. ``manifests`` and ``diagnosis`` are pure; ``kubernetes_asyncio`` is imported by
``connection`` and ``cluster`` only.
"""
