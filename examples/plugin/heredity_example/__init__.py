"""One of each kind that a package can add to heredity, each in a file. pyproject.toml names them."""
