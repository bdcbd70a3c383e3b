"""The subcommands of `python -m vlvm_jax.data`: one module each, named as the command."""
