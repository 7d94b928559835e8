"""SGD as a stochastic process: what minibatch noise does to the parameters, and where it leaves them."""
