"""Training; `runtime` was here before version 0.2, and programs may import it from here."""


def __getattr__(name: str):
    if name == "runtime":  # on first use: it imports JAX
        from smoothsa_jax.devices import runtime

        return runtime
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
