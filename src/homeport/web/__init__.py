"""Web functions: their addresses, the requests they run, the tokens that open them."""
