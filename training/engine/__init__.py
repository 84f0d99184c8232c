"""The training loop: steps, state, optimisers, distribution, logs."""
