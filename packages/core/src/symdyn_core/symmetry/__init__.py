"""Which transformations of the parameters leave a model unchanged, and what training makes of them."""
