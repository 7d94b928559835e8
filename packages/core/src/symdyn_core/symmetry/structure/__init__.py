"""What the operations of one forward pass say about the symmetries of the weights."""
