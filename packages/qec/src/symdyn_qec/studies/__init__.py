"""One study a file; the registry finds them, nothing imports them."""
