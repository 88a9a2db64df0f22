"""Interim."""

import contextlib, os


@contextlib.contextmanager
def connected(address=None, **options):
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(
        address=address,
        include_dashboard=False,
        **({} if address else {"num_cpus": 2, "_temp_dir": "/tmp/rb"}),
    )
    try:
        yield
    finally:
        ray.shutdown()
